"""The receiver of webhooks: an HTTP server that verifies signatures and answers when Kafka has the delivery.

Uses starlette, h11 and `ciml.integrations`. It parses no body: adapters do, in ingest.
"""
