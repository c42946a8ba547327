"""Tests of the receiver of MQTT messages, with a real mosquitto."""
