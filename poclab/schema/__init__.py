"""Files that users write: labs and images in YAML, read strictly, with all faults in one go."""
