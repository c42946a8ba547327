"""HTTP: a server with limits on connections and on requests in memory, checked addresses, pinned outgoing connections.

Uses h11 and httpcore. It contains no application: `ciml.serving.server` and `ciml.integrations.webhooks` do.
"""
