"""Training data from files: prompts from files and templates, and pictures with captions."""
