"""Zuul's executor with its log streamer on loopback: it would listen on every address, and no setting changes that."""

import sys

import zuul.lib.log_streamer
from zuul.cmd.executor import main


class LogStreamer(zuul.lib.log_streamer.LogStreamer):
    def __init__(self, host, port, *args, **kwargs):
        super().__init__("127.0.0.1", port, *args, **kwargs)


zuul.lib.log_streamer.LogStreamer = LogStreamer
sys.exit(main())
