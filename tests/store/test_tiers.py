import pytest

from arc_halo.testing.tiers import TierTests


class TestDatabase(TierTests):
    @pytest.fixture
    def blob_url(self):
        return None


class TestFolder(TierTests):
    @pytest.fixture
    def blob_url(self, file_url):
        return file_url


class TestS3(TierTests):
    @pytest.fixture
    def blob_url(self, s3_url):
        return s3_url
