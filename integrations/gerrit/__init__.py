"""The receiver of Gerrit's events: the stream over SSH, and the REST API for what happened while it was away.

Uses asyncssh, httpcore and `ciml.integrations`. What an event says of runs is the adapter's, in ingest.
"""
