"""Live windows: samples from Kafka to the windows and examples of running jobs, with state for each run.

Uses `ciml.transforms.live`. It stores nothing: windows go to topics.
"""
