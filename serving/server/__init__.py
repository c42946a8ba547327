"""The model server: TensorFlow Serving's gRPC and REST API with limits on every request.

Uses TensorFlow, starlette, h11 and grpc. It chooses no versions: its configuration file names them.
"""
