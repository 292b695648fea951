"""The commands other than training, one file each."""
