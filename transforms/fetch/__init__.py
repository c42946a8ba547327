"""Fetch: logs from HTTP, files and S3, by an allow-list of checked addresses, with limits on time and bytes.

It finds them in folders, archives and lists of artifacts. Uses httpcore and boto3. It parses no telemetry.
"""
