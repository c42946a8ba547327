"""A real Zuul with its Gerrit, mosquitto and log server on loopback: scripts that start it, and its proof."""
