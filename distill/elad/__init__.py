"""ELAD (our reading of arXiv 2402.13098): a student's explanations, how unsure they are, and a teacher's review."""
