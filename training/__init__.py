"""Data for the trainer, models, evaluation, the gate and the steps of a refresh."""
