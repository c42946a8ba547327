"""The receiver of MQTT messages: a persistent session for each source, acknowledged when Kafka has the message.

Uses paho-mqtt and `ciml.services.receivers`. It parses no message: adapters do, in ingest.
"""
