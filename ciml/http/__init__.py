"""What ciml's HTTP servers share: limits of connections and of requests in memory, and the server on a socket.

Uses uvicorn. It knows no application: `ciml.serving.server` and `ciml.integrations.webhooks` bring theirs.
"""
