"""Tekton's own events: a program in Go with the functions and the HTTP client of Tekton's controller.

The reconciler, which needs a Kubernetes with pods, is not run: the TaskRuns are written here.
"""
