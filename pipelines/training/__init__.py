"""Training as a service: the continuous trainer, its metrics, and sweeps over processes.

Uses `training` and `ciml.serving.registry`. It holds no step of a refresh: `ciml.training.refresh` does.
"""
