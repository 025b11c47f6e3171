"""The kit for testing what is built on Arc-Halo.

databases
    a pytest plugin: real PostgreSQL databases, each test with one of its own
codecs, tiers
    the contracts of codecs and of the places payloads are in: test suites to subclass
migrations
    the contract of declarations: what autogenerate writes for any metadata goes there and back
"""
