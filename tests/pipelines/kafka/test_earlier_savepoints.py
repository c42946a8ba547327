"""A worker continues from savepoints of the version before."""

from __future__ import annotations

import subprocess
import sys

#: Elements and restrictions of the Kafka source, and a key of deferred work, in a savepoint of 0.2: by Beam's
#: FastPrimitivesCoder.
STORED = (
    "/4AFlUgAAAAAAAAAjBRwaXBlbGluZXMua2Fma2EucGxhbpSMDVBhcnRpdGlvblJlYWSUk5QpgZRdlCiMCWNpLWV2ZW50c5SMAVSUSwBLBU4pZWIu",
    "/4AFlUsAAAAAAAAAjB5waXBlbGluZXMua2Fma2EubmV3X3BhcnRpdGlvbnOUjApLbm93blRvcGljlJOUKYGUXZQojAljaS1ldmVudHOUjAFUlEsCZWIu",
    "/4AFlT8AAAAAAAAAjBdwaXBlbGluZXMua2Fma2EudHJhY2tlcpSMC1Jlc3RyaWN0aW9ulJOUKEsDSwpHAAAAAAAAAABLAHSUgZQu",
    "/4AFlUYAAAAAAAAAjBJjaW1sLnN0b3JhZ2UubG9jYWyUjApMb2NhbFN0b3JllJOUKYGUfZSMBHJvb3SUjBAvdG1wL3NwL2RhdGEvcmF3lHNiLg==",
)
CODE = """
import base64, sys
from apache_beam.coders import FastPrimitivesCoder
from ciml.pipelines.kafka.source import accept_earlier_modules
accept_earlier_modules()
print([FastPrimitivesCoder().decode(base64.b64decode(text)) for text in sys.argv[1:]])
"""


def test_a_worker_reads_what_savepoints_of_0_2_hold() -> None:
    done = subprocess.run([sys.executable, "-c", CODE, *STORED], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == (
        "[PartitionRead(topic='ci-events', topic_id='T', partition=0, start=5, end=None, covered=()), "
        "KnownTopic(topic='ci-events', topic_id='T', partitions=2), "
        "Restriction(start=3, stop=10, not_before_s=0.0, early=0), LocalStore('/tmp/sp/data/raw')]"
    )
