"""GitLab: the adapter of its webhooks, the client of merge requests, the text of ``ciml connect``."""
