"""What one process and two ranks must do alike; `python -m tests.ranks FOLDER` under torchrun is a rank."""
