"""Stores: objects in a folder or an S3 bucket behind one interface, whose `create` is the atomic commit.

Uses boto3 for S3 only. It knows no layout of objects: `ciml.data_root` and the manifests do.
"""
