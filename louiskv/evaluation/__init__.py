"""How good: tasks, fidelity to full attention, probes of every layer, calibration; their results go into files."""
