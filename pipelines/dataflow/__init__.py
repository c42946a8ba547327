"""Jobs on Google's Dataflow: their settings, templates, submission, and the start of their workers.

Uses Beam's own Dataflow runner, which is imported when a job is made.
"""
