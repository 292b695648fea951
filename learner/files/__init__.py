"""What is trained on, besides samples: prompts from files and templates, and pictures with captions."""
