"""Experiments: recipes that differ in a few keys, each over several seeds, measured alike."""
