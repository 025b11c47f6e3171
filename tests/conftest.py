"""The plugins of this test suite."""

pytest_plugins = [
    "arc_halo.testing.databases",
    "tests.fixtures.blobs",
    "tests.fixtures.disks",
    "tests.fixtures.embedded",
    "tests.fixtures.engines",
    "tests.fixtures.hub",
    "tests.fixtures.integrations",
    "tests.fixtures.interrupts",
    "tests.fixtures.long",
    "tests.fixtures.migrations",
    "tests.fixtures.proxy",
    "tests.fixtures.rehearsals",
    "tests.training.trained",
]
