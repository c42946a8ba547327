"""Verdicts on failed runs: the evidence for them, and the feedback that is sent to review systems.

Uses the predictions of `ciml.serving`. It reads no topic and keeps no process running: `ciml.pipelines` and
`ciml.services` do.
"""
