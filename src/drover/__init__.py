"""Diffusion reinforcement learning over Ray. Its packages are the folders of the repository root, linked here."""
