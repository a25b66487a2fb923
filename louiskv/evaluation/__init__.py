"""How good: tasks, fidelity to full attention, probes of single layers; what they find goes into files of results."""
