"""Volumes in buckets: the open one anonymously, private ones by the keys of the environment, others refused."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest
import requests
from moto.server import ThreadedMotoServer
from store_samples import commit, make_store
from test_zarr_volume import pixels, write_array, write_pyramid
from volume_servers import VolumeServer

from embedcache.errors import InputError, StorageError, VolumeError
from embedcache.remote import open_source, sources
from embedcache.remote.s3 import OPEN_BUCKETS, S3Source
from embedcache.store import EmbeddingStore
from embedcache.store.reading import remote
from embedcache.volume import open_volume

PRIVATE = "a-private-one"


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """An S3 server of this machine that checks signatures and policies once its users are made."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(scope="module")
def private(endpoint: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A bucket that only who has keys may read."""
    upload(endpoint, PRIVATE, write_array(tmp_path_factory.mktemp("s3") / "a.zarr", pixels()), "a b.zarr")


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    """No credentials but those that a test gives; nothing outside is asked."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("EMBEDCACHE_CHUNKS", str(tmp_path / "chunks"))
    monkeypatch.setattr(remote, "CACHE", tmp_path / "mirrors")
    monkeypatch.setattr(sources, "PAUSES", (0.01, 0.01))


def client(endpoint: str, service: str = "s3") -> Any:
    keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
    return boto3.client(service, endpoint_url=endpoint, region_name="us-east-1", **keys)


def upload(endpoint: str, bucket: str, folder: Path, key: str, *, acl: str = "private") -> None:
    s3 = client(endpoint)
    s3.create_bucket(Bucket=bucket)
    for path in folder.rglob("*"):
        if path.is_file():
            name = f"{key}/{path.relative_to(folder).as_posix()}"
            s3.put_object(Bucket=bucket, Key=name, Body=path.read_bytes(), ACL=acl)


@contextmanager
def signatures_checked(endpoint: str) -> Iterator[None]:
    """moto checks who asks, by what signature; it cannot answer who does not sign meanwhile."""
    requests.post(f"{endpoint}/moto-api/reset-auth", data="0", timeout=5)
    try:
        yield
    finally:
        requests.post(f"{endpoint}/moto-api/reset-auth", data="1000000", timeout=5)


@pytest.fixture
def keys(endpoint: str, private: None) -> Iterator[tuple[str, str]]:
    """Keys of a user who may read the private bucket."""
    iam = client(endpoint, "iam")
    iam.create_user(UserName="reader")
    policy = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]}
    iam.put_user_policy(UserName="reader", PolicyName="read", PolicyDocument=json.dumps(policy))
    made = iam.create_access_key(UserName="reader")["AccessKey"]
    yield made["AccessKeyId"], made["SecretAccessKey"]
    iam.delete_access_key(UserName="reader", AccessKeyId=made["AccessKeyId"])
    iam.delete_user_policy(UserName="reader", PolicyName="read")
    iam.delete_user(UserName="reader")


def test_a_pyramid_in_the_open_bucket_opens_without_credentials(
    tmp_path: Path, endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = pixels()
    local = write_pyramid(tmp_path / "p.zarr", values)
    upload(endpoint, OPEN_BUCKETS[0], local, "Sample 1/volumes/p.zarr", acl="public-read")
    monkeypatch.setenv(
        "AWS_ACCESS_KEY_ID", "whoever"
    )  # without its secret: would be refused, and is not used
    with open_volume(f"s3://{OPEN_BUCKETS[0]}/Sample 1/volumes/p.zarr", level=1) as volume:
        assert volume.source == f"s3://{OPEN_BUCKETS[0]}/Sample 1/volumes/p.zarr"
        assert volume.header() == open_volume(local, level=1).header()
        np.testing.assert_array_equal(
            volume.read(3, slice(0, 9), slice(0, 12)), values[::2, ::2, ::2][3, :9, :12]
        )


def test_a_private_bucket_is_refused_without_keys_and_opens_with_those_of_the_environment(
    tmp_path: Path, endpoint: str, keys: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    values = pixels()
    url = f"s3://{PRIVATE}/a b.zarr"
    with pytest.raises(VolumeError, match=r"refuses \(403\) anonymous reading") as refused:
        open_volume(url)
    assert (refused.value.exit_code, "AWS_ACCESS_KEY_ID" in str(refused.value.hint)) == (2, True)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", keys[0])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", keys[1])
    with signatures_checked(endpoint), open_volume(url) as volume:
        np.testing.assert_array_equal(volume.read(4, slice(3, 40), slice(5, 70)), values[4, 3:40, 5:70])
    with pytest.raises(VolumeError, match=r"refuses .* anonymous reading"):
        open_volume(url, anon=True)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", keys[1][:-1] + "x")
    with (
        signatures_checked(endpoint),
        pytest.raises(
            VolumeError, match=r"refuses \(403, SignatureDoesNotMatch\) these credentials"
        ) as wrong,
    ):
        open_volume(url)
    assert wrong.value.exit_code == 2
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIANOBODY")
    with (
        signatures_checked(endpoint),
        pytest.raises(VolumeError, match=r"refuses \(403, InvalidAccessKeyId\) these credentials"),
    ):
        open_volume(url)


def test_credentials_are_asked_for_and_refused_where_they_say_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(InputError, match="no credentials were found"):
        S3Source("s3://bucket/a.zarr", anon=False)
    with pytest.raises(InputError, match="names no bucket"):
        S3Source("s3:///a.zarr")
    with pytest.raises(InputError, match="--anon and --no-anon are for s3://"):
        open_source("https://example.org/a.zarr", anon=True)


def test_a_bucket_that_is_not_there_is_no_missing_volume(endpoint: str) -> None:
    with pytest.raises(StorageError, match="cannot be reached: there is no bucket nobody-has-this"):
        open_volume("s3://nobody-has-this/a.zarr")


@pytest.mark.parametrize(
    ("bucket", "region", "address"),
    [
        ("plain", None, "https://plain.s3.us-east-1.amazonaws.com/k/a%20b%2B.zarr/0/.zarray"),
        ("plain", "eu-west-2", "https://plain.s3.eu-west-2.amazonaws.com/k/a%20b%2B.zarr/0/.zarray"),
        ("dots.in.it", None, "https://s3.us-east-1.amazonaws.com/dots.in.it/k/a%20b%2B.zarr/0/.zarray"),
    ],
)
def test_an_address_of_amazon_is_the_one_of_its_bucket_and_region(
    bucket: str, region: str | None, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    if region is not None:
        monkeypatch.setenv("AWS_REGION", region)
    assert S3Source(f"s3://{bucket}/k/a b+.zarr", anon=True)._address("0/.zarray") == address


def test_a_store_in_a_bucket_is_listed_and_reads_like_the_copy_here(
    tmp_path: Path, endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = make_store(tmp_path / "there")
    commit(local, 0, 1)
    upload(endpoint, "stores", local.path, "deep/store", acl="public-read")
    client(endpoint).put_bucket_acl(Bucket="stores", ACL="public-read")
    source = open_source("s3://stores/deep/store")
    listed = source.names("journal")
    assert listed is not None
    assert sorted(listed) == sorted(
        path.name for path in (local.path / "journal").iterdir() if path.is_file()
    )
    store = EmbeddingStore.open("s3://stores/deep/store")
    assert np.array_equal(store[1], local[1])


def test_a_bucket_of_another_region_is_asked_there_from_the_first_answer_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_array(tmp_path / "there" / "a.zarr", pixels())
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    with VolumeServer(tmp_path / "there") as home, VolumeServer({}, moved="eu-west-2") as asked:

        class Regions(S3Source):
            """Amazon's regions are servers of this machine."""

            def _base(self) -> str:
                return {"us-east-1": asked.url, "eu-west-2": home.url}[self._region]

        source = Regions("s3://bucket/a.zarr", anon=True)
        metadata = (tmp_path / "there" / "a.zarr" / ".zarray").read_bytes()
        assert source.read(".zarray") == source.read(".zarray") == metadata
        assert source.read(".zarray", 1, 4) == metadata[1:5]
        assert (asked.asked.total(), home.asked.total()) == (1, 3)
