"""The demo: plans events, runs the whole chain as child processes, and checks each number of the stored result.

Uses engines, pipelines and the commands themselves. Its checks recount the stored data and reuse none of their results.
"""
