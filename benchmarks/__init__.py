"""What drover costs and what others cost, measured side by side. Each module prints figures; nothing imports these."""
