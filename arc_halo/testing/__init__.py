"""The kit for testing what is built on Arc-Halo.

databases
    a pytest plugin: real PostgreSQL databases, each test with one of its own
"""
