"""Search for the teacher's instruction, with the teacher as optimiser (OPRO, arXiv 2309.03409, as in 2403.15886)."""
