"""Limits on input: all bounds that are checked before memory or time is spent.

docs/limits.md lists them with the reason for each; tests/project/test_limits.py compares the two. A comment above
several limits describes them in order. Where an operator may change a limit, it names the option or the policy key.
"""

from __future__ import annotations

MIB = 1 << 20

# == Messages of a topic: events, samples, announcements ==

MAX_MESSAGE_BYTES = 1 * MIB  # of value, key and headers together; beyond it a dead letter holds no payload
MAX_MESSAGE_HEADERS = 256  # ciml reads six; an empty header takes two bytes of a message and a hundred in Python
MAX_JSON_DEPTH = 32  # ciml's own formats nest four deep
MAX_JSON_DIGITS = 1000  # of a whole number, which `int` parses in quadratic time; the largest float has 309 digits
MAX_EVENT_RUNS = 1000  # runs in one event
MAX_TEXT_CHARACTERS = 1024  # of a fact of a run, such as its project
MAX_ID_CHARACTERS = 512  # of the id of a run or an event
MAX_URL_CHARACTERS = 4096  # of an address, which is long if it is signed
MAX_JOB_PATH_CHARACTERS = 200  # of a job, percent-encoded: the folder "job=NAME" has at most 255 bytes
MAX_LABELS = 64  # of a run
MAX_SUBJECT_RUNS = 10_000  # runs whose trust one update changes; snapshots judge all of them
MAX_SUBJECTS = 4  # of a run: its workflow run, change, commit and ref
MAX_REVIEWERS = 50  # of a commit in one pull request; with more, no approval counts
MAX_LABEL_NAME_CHARACTERS = 128
MAX_SAMPLES_BYTES = MIB // 4  # of one message of samples
MAX_SAMPLES_COLUMNS = 1024  # of one message of samples
MAX_COLUMN_NAME_CHARACTERS = 300  # a group and a name of 128 characters each, and the suffix of a repeated name
MAX_RECORDER_SAMPLES = 10_000_000  # of one start of a recorder: 115 days at 1 s
MAX_LISTING_LINE_BYTES = MAX_MESSAGE_BYTES - (16 << 10)  # with its headers it fits the payload of a dead letter
MAX_LISTING_BYTES = 32 << 30  # unpacked, about 80 million lines: a small gzip file can unpack to any size

# == Tables of results: `ciml load`. Larger ones are work for `ciml backfill` ==

MAX_RESULTS_BYTES = 512 * MIB  # unpacked: about two million rows
MAX_RESULTS_ROWS = 4_000_000  # ids are kept to find duplicates, 150 bytes each
MAX_RESULTS_COLUMNS = 1024  # of a table
MAX_RESULTS_ROW_BYTES = MAX_LISTING_LINE_BYTES  # as a row becomes a line of a listing
MAX_RESULTS_CELL_CHARACTERS = 64 << 10  # csv itself stops at 131,072

# == Tables for other engines and for Python. Further columns are left out; `ciml tables publish` reports them ==

MAX_TABLE_COLUMNS = 10_000  # of all logs together; a table's log repeats their names in each checkpoint
MAX_TABLE_UNTRUSTED_COLUMNS = 1_000  # of these, those that no trusted run has
MAX_LABEL_COLUMNS = 100  # of the table of runs in Python; the map of labels has all

# == Output of jobs ==

MAX_OUTPUT_BYTES = 256 * MIB  # that are kept of one output: its head and its tail; policy key max_output_bytes
MIN_OUTPUT_BYTES = 16 * MIB  # of that key: the head and the tail each hold a block of lines
SMALL_OUTPUT_BYTES = 64 << 10  # unpacked; smaller outputs of a batch are held, and prepared together
LARGE_OUTPUT_BYTES = 8 * MIB  # compressed; a process prepares larger outputs one at a time
MAX_OUTPUT_UNPACKED_BYTES = 8 << 30  # that are read of one: a small gzip file can unpack to any size
MAX_OUTPUT_LINE_CHARACTERS = 4096  # of a line; longer ones are cut, and hold data rather than words
MAX_OUTPUT_FAILED_TESTS = 1000  # of one output
MAX_OUTPUT_PROFILE_TEMPLATES = 50_000  # of the profile of one job, about 10 MB; a sample of more
MAX_OUTPUT_STORED_LINE_BYTES = 64 << 10  # of a stored line: minified code has such, and redacting one takes its time
MAX_OUTPUT_WIRE_BYTES = 1024 * MIB  # of one output as it is transferred
MAX_OUTPUT_KEY_LINES = 200  # after the beginning of a private key, within which its end is searched: RSA has 100
MAX_STORED_TEMPLATES_BYTES = 16 * MIB  # of one output; later templates count as one
MAX_READ_OUTPUTS_BYTES = 64 << 20  # of text, of the outputs that a process read last and may need again
MAX_OUTPUT_TEMPLATES = 200_000  # of one output, 150 bytes each; later ones count as one
#: Signatures of failed runs. A full state takes about 10 MB; it is read and written by each `ciml failures`.
MAX_SIGNATURES = 2_000
MAX_SIGNATURE_CHANGES = 50  # of one signature, the latest
MAX_SIGNATURE_PLACES = 20  # jobs, nodes and providers of one, with their runs
MAX_SIGNATURE_RUNS = 20  # of one, the latest
MAX_SIGNATURE_JOBS = 2_000  # whose latest passing runs are remembered
MAX_RECENT_TESTS = 10_000  # whose failures on other changes are remembered
MAX_TEST_CHANGES = 20  # of one of them, the latest
MAX_RUN_RECENT_TESTS = 50  # of one run, the first
MAX_SIGNED_RUNS = 20_000  # the latest failed runs whose signature is known

# == Logs: bytes, columns, rows, restarts, time ==

#: Instants that a sample, a run or a message may have, µs UTC: 2000 to 2099. A clock that was never set shows 1970.
#: Checked as whole numbers before zones and calendars, which support the years 1 to 9999 only.
EARLIEST_US = 946_684_800_000_000
LATEST_US = 4_102_444_800_000_000
#: Columns of one log, of all starts of its recorder together. dool writes about 1,500 on a machine with 128 cores.
MAX_LOG_COLUMNS = 4096
#: Starts of the recorder in one log, and different headers among them: each header takes a parser call of its own.
MAX_LOG_STARTS = 1000
MAX_LOG_HEADERS = 100
#: Days that become the first one of a live run, one after another: each moves and publishes all of its windows again.
MAX_RUN_DAYS = 17
#: Cells (rows times the columns of all starts) of one log: 128 MiB as floats. A day at 1 s fits up to 194 columns.
MAX_LOG_CELLS = 1 << 24
#: Minimum cells per row, to account for its time: at most a million rows, twelve days at 1 s.
MIN_ROW_CELLS = 16
#: Cells for each byte of a log with several starts: each start has nulls in the columns of the others, which cost the
#: sender nothing. A log with one start has less than one cell per byte.
CELLS_PER_LOG_BYTE = 4
#: Bytes of a row of samples, of a header's row, and characters of the name of a group or a column.
MAX_LOG_ROW_BYTES = 256 << 10
MAX_HEADER_ROW_BYTES = 64 << 10
MAX_COLUMN_NAME = 128
#: Bytes of a log within which its first header must end.
MAX_HEADER_OFFSET = MIB
#: Bytes of one log's text that the parser accepts, independent of the fetch policy.
MAX_PARSED_BYTES = 64 * MIB
#: Bytes of text that are parsed at a time. Larger batches are not faster, and parsing takes up to ten times its text.
PARSE_BATCH_BYTES = 16 * MIB
#: Seconds by which all samples of a log may lie before its run's start, or after its end: clocks differ, and times are
#: sometimes written in another zone.
MAX_CLOCK_SKEW_S = 86_400

# == Fetching of logs: archives, requests, transferred bytes ==

#: Layers of gzip: a valid log has at most two, as a gzip file with a content encoding of gzip. Members of one layer:
#: each takes about 10 µs.
MAX_GZIP_LAYERS = 2
MAX_GZIP_MEMBERS = 10_000
#: Redirects on the way to a log, and requests for one log together: paths of a folder, pages of a list, redirects.
MAX_REDIRECTS = 5
MAX_LOG_REQUESTS = 32
#: Paths of the log in a folder, and names of a job's artifact, that a fetch policy may list.
MAX_LOG_PATHS = 16
MAX_ARTIFACT_NAMES = 16
#: Pages of a list of artifacts, of a hundred each, and bytes of one: GitHub has a kilobyte for each artifact.
MAX_ARTIFACTS_PAGES = 10
MAX_ARTIFACTS_PAGE_BYTES = MIB
#: Zip archives with a log: files, bytes of their directory, bytes of all files unpacked as their directory states (only
#: the log is unpacked), and bytes unpacked for each packed one: deflate cannot pack more.
MAX_ARCHIVE_ENTRIES = 10_000
MAX_ARCHIVE_DIRECTORY_BYTES = 2 * MIB
MAX_ARCHIVE_BYTES = 1024 * MIB
MAX_ARCHIVE_RATIO = 1032
#: Seconds that a host of logs may ask to wait; GitHub's limits are of an hour.
MAX_RETRY_AFTER_S = 3600.0
#: Seconds after the first try of a log for which its run does not become a dead letter because its host asks to wait.
MAX_HOST_WAIT_S = 86_400.0
#: Bytes of a file with a token, a password or a receiver's secret.
MAX_SECRET_BYTES = 16 << 10
#: Bytes of a log as it is transferred. Two hours of dstat are 0.2 MB in gzip. Policy key max_wire_bytes.
MAX_WIRE_BYTES = 16 * MIB
#: Bytes of a log unpacked. A day at 1 s of 60 columns is 36 MB at 7 bytes a cell; parsing takes about 13 times its
#: text. Policy key max_bytes.
MAX_LOG_BYTES = 40 * MIB

# == Batches: limits of all logs of a batch together ==

#: Bytes of unpacked logs of one batch in memory: the size of one largest log. Policy key max_batch_bytes.
MAX_BATCH_BYTES = 40 * MIB
#: Bytes of unpacked logs after which no further log is fetched until these are parsed and stored.
PART_BYTES = 16 * MIB
#: Bytes of unpacked logs above which the threads of a process parse and store them one part at a time.
SMALL_PART_BYTES = 4 * MIB
#: Resident memory of a process that settles the worst logs that these limits permit, libraries included; 1,000 MiB were
#: measured. Deployments provide this for each such process: flink.workers in deploy/helm/ciml/values.yaml.
SETTLE_PEAK_BYTES = 1280 * MIB
#: Resident memory of an idle worker, and of the pool that starts workers.
IDLE_WORKER_BYTES = 512 * MIB

# == Receivers: deliveries of CI systems, their secrets and signatures ==

#: Bytes of a delivery's body: with the headers that its adapter needs it fits a message. `max_bytes` of a source.
MAX_DELIVERY_BYTES = MAX_MESSAGE_BYTES - (32 << 10)
#: Bytes of deliveries that wait for the broker.
MAX_WAITING_DELIVERIES_BYTES = 128 * MIB
#: Open connections of the receiver of webhooks. `connections` of its configuration.
MAX_HOOK_CONNECTIONS = 512
#: Difference of a signed time from the present one, seconds; and for how long an acknowledged delivery is remembered.
MAX_SIGNATURE_AGE_S = 300.0
#: Deliveries that are remembered, each about 250 bytes: 200 a second for MAX_SIGNATURE_AGE_S.
MAX_KNOWN_DELIVERIES = 1 << 16
#: Messages of an MQTT or Gerrit source that are received and not acknowledged. `in_flight` of a source.
MAX_IN_FLIGHT = 1024
#: Bytes of a line of Gerrit's stream, and of an answer of its REST API; the values and the changes of an answer, and
#: the changes of a comparison.
MAX_STREAM_LINE_BYTES = MAX_DELIVERY_BYTES
MAX_REVIEW_BYTES = 32 * MIB
MAX_REVIEW_VALUES = 2_000_000
MAX_REVIEW_CHANGES = 100
MAX_REVIEWED_CHANGES = 1_000_000
#: Bytes of an answer to the feedback service: a page of a hundred comments of GitHub's largest size.
MAX_ANSWER_BYTES = 8 * MIB
#: Pages of a hundred comments that are read to find an own one: a merge request of GitLab has at most 5,000.
MAX_COMMENT_PAGES = 50
MAX_SOURCES = 100  # sources in a configuration
MAX_SECRETS = 2  # secrets of a source: the present one and its successor

# == Feedback: messages on changes ==

#: Patch sets that are remembered, each about 2 kB for a job: three days of 100,000 runs a week take 5,000.
MAX_FEEDBACK_ENTRIES = 50_000
#: Failed jobs of a patch set that a message counts.
MAX_FEEDBACK_JOBS = 200
#: Texts of the message on a patch set that are remembered with their runs, to know which one a reaction is to.
MAX_FEEDBACK_TEXTS = 10
#: Recorded verdicts, each about 300 bytes: settled ones, open ones of trusted runs, and open ones of other runs each.
MAX_FEEDBACK_VERDICTS = 10_000

# == Model server: connections, requests, tensors ==

#: Bytes of one request. 16 MiB is a batch of 500 runs of 550 windows and 14 features. `ServerOptions.max_bytes`.
MAX_REQUEST_BYTES = 16 * MIB
#: Rows of one request. `ServerOptions.max_rows`.
MAX_REQUEST_ROWS = 1024
#: Bytes of all inputs of a request, unpacked: a tensor of a few bytes may declare a value that repeats.
MAX_TENSOR_BYTES = 64 * MIB
#: Dimensions of a tensor: numpy has no more.
MAX_TENSOR_RANK = 32
#: Commas of a JSON body: two bytes of it become up to 32 of memory.
MAX_JSON_VALUES = 4 * MIB  # 4,194,304
#: Opening brackets and braces of a JSON body: three bytes of it become up to 230 of memory.
MAX_JSON_CONTAINERS = MIB // 2  # 524,288

#: Characters of the definition by which a model describes itself to clients: a hundred columns take 10,000.
MAX_DESCRIPTION_CHARACTERS = MIB

#: Inputs of a gRPC request, and outputs that it asks for. Signatures have a few.
MAX_REQUEST_INPUTS = 64
#: REST's open connections. With gRPC's and the spare files they fit into 1,024 file descriptors, the usual limit of a
#: process: without free descriptors, neither API accepts connections. `ServerOptions.rest_connections`.
MAX_REST_CONNECTIONS = 512
#: gRPC's open connections. `ServerOptions.grpc_connections`.
MAX_GRPC_CONNECTIONS = 256
#: File descriptors for models, the configuration, metrics, and connections that are being closed.
SPARE_FILES = 256
#: Seconds for the header of a request, for a handshake, and for reading an answer. `ServerOptions.header_s`.
MAX_HEADER_S = 10.0
#: Open connections of an endpoint of metrics.
MAX_METRICS_CONNECTIONS = 32
#: Bytes of the header of a REST request.
MAX_HEADER_BYTES = 16 * 1024
#: Chunks of a body that may be of any size; beyond them they have this many bytes on average. Parsing one takes 50 µs.
MAX_SMALL_CHUNKS = 64
MIN_CHUNK_BYTES = 128
#: Seconds for the rest of a request. 16 MiB take 20 s at 7 Mbit/s. `ServerOptions.body_s`.
MAX_BODY_S = 20.0
#: Incomplete gRPC messages: gRPC buffers each up to the largest request. A new one evicts the oldest.
MAX_READING_REQUESTS = 16
#: Concurrent calls on one gRPC connection. gRPC resets further calls.
MAX_STREAMS = 1000
#: Bytes of the requests in reading or waiting, per API, beyond the first SMALL_REQUEST_BYTES of each.
MAX_HELD_BYTES = 64 * MIB
SMALL_REQUEST_BYTES = 64 * 1024
#: Requests beyond this size are processed one at a time: parsing one of 16 MiB takes 20 times its size.
LARGE_REQUEST_BYTES = MIB
#: Requests that wait for a thread or are processed.
MAX_WAITING_REQUESTS = 1024
#: Resident memory of the model server with one model of ciml's size, for any requests. The pod's limit.
MAX_MODEL_SERVER_RSS = 2048 * MIB

# == Model server: limits of a model. A version that exceeds one is not loaded ==

MAX_MODEL_FILES = 1000  # of a version
MAX_MODEL_BYTES = 2048 * MIB  # of all files together
MAX_GRAPH_BYTES = 256 * MIB  # of saved_model.pb
MAX_MODEL_CALL_S = 30.0  # for one call of a model, and for restoring its variables, seconds; `load_model(call_s=)`
MAX_MODEL_LOAD_S = 120.0  # for loading a version without its warm-up, seconds; `load_model(load_s=)`
MAX_MODEL_MEMORY_BYTES = 8192 * MIB  # of a model's process, without files: variables and calls
MAX_WARMUP_BYTES = 64 * MIB  # of assets.extra/tf_serving_warmup_requests
MAX_WARMUP_RECORDS = 1000  # as TensorFlow Serving
MAX_WARMUP_RECORD_BYTES = 16 * MIB  # as the largest request of a client
MAX_WARMUP_S = 300.0  # for all warm-up requests of a version together, seconds

# == Estimators as JSON: `ciml.training.estimators.description` ==

MAX_DESCRIPTION_BYTES = MIB // 4  # of an estimator's class and parameters: the config of a network of 100 layers
MAX_PARAMETER_ITEMS = 1000  # of an array among the parameters
MAX_ESTIMATOR_NAME = 200  # characters of package.module:Name

# == Estimators as files: `ciml.training.estimators.stored` ==

MAX_STORED_BYTES = 1024 * MIB  # of the file, which is read into memory; its arrays are not compressed
MAX_STORED_SCHEMA_BYTES = 64 * MIB  # of its schema: 10 kB for each tree or step
MAX_STORED_FILES = 100_000  # of the file's arrays: ten for each tree

# == Recorder: the spool ==

MAX_RECORDER_LOG_BYTES = 39 * MIB  # of a log; recording stops there: MAX_LOG_BYTES less a second
MAX_RECORDING_LOG_BYTES = 64 * MIB  # of a log that is read again: earlier recorders wrote up to 60 MiB
MAX_RECORDING_FILE_BYTES = MIB  # of each other file of a recording: the limit of the events made from them
MAX_RECORDING_STARTS = 1000  # of a recorder in one recording: each sends a message
MAX_SPOOL_BYTES = 1024 * MIB  # of all unsent recordings; the oldest are deleted first
MAX_SPOOL_ENTRIES = 1000  # of the spool that one recorder reads

# == Dead letters of unexpected exceptions: limits of the stored exception ==

#: Characters of its message, after redaction: one or two lines of a terminal.
MAX_ERROR_CHARACTERS = 300
#: Bytes of its innermost frames: about fifteen frames.
MAX_TRACEBACK_BYTES = 1 << 10

# == Passing profiles: `ciml.transforms.profiles` ==

MAX_KNOWN_TEMPLATES = 4096  # of a job's passing runs, of those that could name a reason: 8 bytes each
MAX_PROFILE_JOBS = 1000  # the first jobs of a data set; runs of other jobs have the pooled profile
MAX_PROFILE_RUNS = 500  # of a job: 10 KB each while the profile is made
#: Memories of runs: each limit holds for each standing (`ciml.runs.run_log`). So untrusted runs displace no others.
MAX_CAUSE_ATTEMPTS = 20  # attempts of one series that are compared: the last recorded ones
MAX_CAUSE_RUNS = 300_000  # the last runs, whose reruns are searched: 150 MB, three weeks of 100,000 runs
MAX_NEAR_RUNS = 1000  # the last recorded trusted runs of one place, among which neighbours are counted
MAX_NEAR_PLACES = 10_000  # the last places where a trusted run ended
MAX_NEAR_FOUND = 300_000  # the last failed runs whose neighbours are remembered
