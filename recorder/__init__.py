"""The recorder behind `ciml record`: runs a command, samples its machine once a second, and delivers the recording.

Uses the packages of `ciml` that need no extra, so that it is light on CI machines. The command never depends on it.
"""
