"""What the product takes from its other libraries that nobody promised it: the hub, stores, pydantic, YAML, the terminal.

Nothing here goes over the network. A failure shows the docstring of its test, which says who relies on what is gone.
"""

from __future__ import annotations

import inspect
import json
import re
import shutil
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import torch
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator

# ---- the hub


def test_errors_of_the_hub() -> None:
    """bitlora.base.describe, bitlora.reading.hub: tell these apart, the narrower first."""
    from huggingface_hub import errors

    assert issubclass(errors.GatedRepoError, errors.RepositoryNotFoundError)
    assert issubclass(errors.LocalEntryNotFoundError, errors.EntryNotFoundError)
    assert issubclass(errors.HFValidationError, ValueError)
    assert issubclass(errors.OfflineModeIsEnabled, ConnectionError)
    assert issubclass(errors.RepositoryNotFoundError, errors.HTTPError)  # of httpx, or of httpx2


@pytest.mark.parametrize(("name", "valid"), [("owner/name", True), ("gpt2", True), ("a/b/c", False), ("a b", False)])
def test_what_may_be_an_id_on_the_hub(name: str, valid: bool) -> None:
    """bitlora.reading.hub: `huggingface_hub.utils.validate_repo_id` tells an id from what is neither that nor a file."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    if valid:
        validate_repo_id(name)
    else:
        with pytest.raises(HFValidationError):
            validate_repo_id(name)


def test_a_cached_file_lies_in_the_folder_of_its_commit(tmp_path: Path) -> None:
    """bitlora.base.describe.read_model_config: the revision of a base from the hub is the name of the folder that its
    config.json is in, and a branch, a tag or a commit finds it again; what is not cached is a LocalEntryNotFoundError where
    the hub may not be asked."""
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    commit = "0123456789abcdef0123456789abcdef01234567"
    model = tmp_path / "models--owner--name"
    (model / "refs").mkdir(parents=True)
    (model / "refs" / "main").write_text(commit)
    (model / "snapshots" / commit).mkdir(parents=True)
    (model / "snapshots" / commit / "config.json").write_text("{}")
    found = hf_hub_download("owner/name", "config.json", cache_dir=tmp_path, local_files_only=True)
    assert Path(found).parent.name == commit
    for revision in (commit, "main"):
        again = hf_hub_download(
            "owner/name", "config.json", cache_dir=tmp_path, local_files_only=True, revision=revision
        )
        assert again == found
    with pytest.raises(LocalEntryNotFoundError):
        hf_hub_download("owner/other", "config.json", cache_dir=tmp_path, local_files_only=True)
    assert constants.ENDPOINT.startswith("http")


def test_data_sets_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """bitlora.reading.hub: `datasets.config.HF_HUB_OFFLINE` says whether the hub may be asked; if not, a data set that is
    not cached is a ConnectionError. A data set that is not there, or gated, is a DatasetNotFoundError."""
    import datasets
    from huggingface_hub import constants

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConnectionError):
        datasets.load_dataset("owner/no-such-data", cache_dir=str(tmp_path))
    assert issubclass(datasets.exceptions.DatasetNotFoundError, datasets.exceptions.DatasetsError)
    rows = datasets.Dataset.from_list([{"prompt": "1+1=", "completion": "2"}])
    assert list(rows) == [{"prompt": "1+1=", "completion": "2"}]


def test_a_cached_data_set_lies_in_the_folder_of_its_commit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """bitlora.reading.hub._commit: the files of a data set are `cache_files`, in a folder that has the name of the
    builder's hash, which of one from the hub is the commit. Where the hub does not answer, the newest copy comes, whatever
    revision was asked for: why the product looks at what it got."""
    import datasets
    from datasets.load import HubDatasetModuleFactory
    from huggingface_hub import constants

    from bitlora.reading.hub import _commit

    assert "self.commit_hash,\n            builder_kwargs," in inspect.getsource(HubDatasetModuleFactory.get_module)
    (tmp_path / "rows.json").write_text('{"prompt": "1+1=", "completion": "2"}\n')
    local = datasets.load_dataset("json", data_files=str(tmp_path / "rows.json"), cache_dir=str(tmp_path / "made"))
    assert _commit(local) is None
    made = Path(local["train"].cache_files[0]["filename"]).parent
    commit = "0123456789abcdef0123456789abcdef01234567"
    kept = shutil.copytree(made, tmp_path / "cache" / "owner___name" / "default" / "0.0.0" / commit)
    (kept / "json-train.arrow").rename(kept / "name-train.arrow")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for revision in (None, commit, "f" * 40):
        found = datasets.load_dataset("owner/name", revision=revision, cache_dir=str(tmp_path / "cache"))
        assert list(found["train"]) == [{"prompt": "1+1=", "completion": "2"}]
        assert _commit(found) == commit


# ---- stores and files


@pytest.fixture
def s3() -> Any:
    """A client of a server that is not there."""
    from pyarrow import fs

    return fs.S3FileSystem(
        access_key="key",
        secret_key="secret",
        region="us-east-1",
        scheme="http",
        endpoint_override="127.0.0.1:9",
        connect_timeout=5.0,
        request_timeout=9.0,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=1),
        allow_delayed_open=True,
    )


def test_errors_of_s3(s3: Any) -> None:
    """bitlora.files.object_storage, bitlora.files.object_client: the client's keywords, and how its errors read: `When …:
    AWS Error NETWORK_CONNECTION …`, one try and no more; the product tries again by itself."""
    with pytest.raises(OSError, match=r"^When .*?: AWS Error ") as caught:
        s3.get_file_info("bucket/name")
    assert re.search("network_connection|curlCode", str(caught.value), re.IGNORECASE)


def test_looking_at_files(tmp_path: Path) -> None:
    """bitlora.files.object_storage: what is not there is an info of the type NotFound, an empty listing, and a
    FileNotFoundError when it is opened; and what an info of a file has."""
    from pyarrow import fs

    files = fs.LocalFileSystem()
    (tmp_path / "trials").mkdir()
    (tmp_path / "trials" / "file").write_bytes(b"12345")
    assert files.get_file_info(f"{tmp_path}/nothing").type == fs.FileType.NotFound
    assert files.get_file_info(f"{tmp_path}/trials").type == fs.FileType.Directory
    assert files.get_file_info(fs.FileSelector(f"{tmp_path}/nothing", recursive=True, allow_not_found=True)) == []
    [info] = files.get_file_info(fs.FileSelector(f"{tmp_path}/trials", recursive=True, allow_not_found=True))
    assert (info.base_name, info.path, info.size) == ("file", f"{tmp_path}/trials/file", 5)
    assert info.mtime is not None
    with pytest.raises(FileNotFoundError):
        files.open_input_file(f"{tmp_path}/nothing")


def test_stores_by_their_uri() -> None:
    """bitlora.files.object_client: an unknown scheme is ArrowInvalid; fsspec, which is asked then, says ValueError or
    ImportError; a package of fsspec's is wrapped."""
    import fsspec  # type: ignore[import-untyped]
    import pyarrow as pa
    from pyarrow import fs

    with pytest.raises((pa.ArrowInvalid, pa.ArrowNotImplementedError)):
        fs.FileSystem.from_uri("nothing://bucket/name")
    with pytest.raises((ImportError, ValueError)):
        fsspec.core.url_to_fs("nothing://bucket/name")
    client, path = fsspec.core.url_to_fs("memory://contract/name")
    files = fs.PyFileSystem(fs.FSSpecHandler(client))
    with files.open_output_stream(path) as stream:
        stream.write(b"12345")
    with files.open_input_file(path) as stream:
        assert stream.read() == b"12345"
    google, place = fs.FileSystem.from_uri("gs://anonymous@bucket/name?retry_limit_seconds=9")
    assert (type(google).__name__, place) == ("GcsFileSystem", "bucket/name")


def test_a_table_keeps_its_metadata(tmp_path: Path) -> None:
    """bitlora.files.record: the dtype that scores were computed in stands in the file's schema, in bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({"loss": pa.array([1.0])}).replace_schema_metadata({"dtype": "bfloat16"})
    pq.write_table(table, tmp_path / "eval.parquet")
    assert pq.read_schema(tmp_path / "eval.parquet").metadata[b"dtype"] == b"bfloat16"
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    with pytest.raises((OSError, ValueError)):
        pq.read_schema(tmp_path / "broken.parquet")


def test_checkpoints_in_one_file(tmp_path: Path) -> None:
    """bitlora.engine.checkpoint, bitlora.adapter.peft_folder: text in the header of a safetensors file, and the errors of
    one that is cut short or missing."""
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_file, save_file

    path = tmp_path / "checkpoint.safetensors"
    save_file({"latent": torch.arange(3.0)}, path, metadata={"progress": json.dumps({"step": 4})})
    with safe_open(path, framework="pt") as file:
        assert json.loads(file.metadata()["progress"]) == {"step": 4}
        assert file.get_tensor("latent").tolist() == [0, 1, 2]
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(SafetensorError):
        load_file(path)
    with pytest.raises(FileNotFoundError):
        load_file(tmp_path / "nothing")


# ---- specs


class _Config(BaseModel):
    """Every kind of field that a spec has."""

    model_config = ConfigDict(extra="forbid", strict=True)

    text: Annotated[str, Field(min_length=1)] = "x"
    whole: Annotated[int, Field(ge=1)] = 1
    number: Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)] = 0.5
    most: Annotated[float, Field(le=1.0)] = 0.5
    flag: bool = True
    items: Annotated[list[str], Field(min_length=1)] = ["x"]
    table: dict[str, Any] = {}
    inner: _Config | None = None
    either: Annotated[int, Field(gt=0)] | Literal["epoch"] = 1
    own: int = 0

    @field_validator("own")
    @classmethod
    def _own(cls, value: int) -> int:
        if value:
            raise ValueError("our own words")
        return value


def _errors(**values: Any) -> list[Any]:
    with pytest.raises(ValidationError) as caught:
        _Config(**values)
    return caught.value.errors(include_url=False)


@pytest.mark.parametrize(
    ("key", "value", "kind", "ctx"),
    [
        ("text", 1, "string_type", {}),
        ("text", "", "string_too_short", {"min_length": 1}),
        ("whole", "1", "int_type", {}),
        ("whole", 0, "greater_than_equal", {"ge": 1}),
        ("number", "1", "float_type", {}),
        ("number", float("nan"), "finite_number", {}),
        ("number", 0.0, "greater_than", {"gt": 0}),
        ("number", 1.0, "less_than", {"lt": 1}),
        ("most", 2.0, "less_than_equal", {"le": 1}),
        ("flag", 1, "bool_type", {}),
        ("items", "x", "list_type", {}),
        ("items", [], "too_short", {"min_length": 1}),
        ("table", [], "dict_type", {}),
        ("inner", [], "model_type", {}),
    ],
)
def test_kinds_of_errors(key: str, value: Any, kind: str, ctx: dict[str, Any]) -> None:
    """bitlora.config.explain._WANTED: pydantic's types of errors and their `ctx`, in the user's words. Under another name
    a wrong value would be `not valid here`, without what would be right."""
    [error] = _errors(**{key: value})
    assert error["type"] == kind
    assert ctx.items() <= error.get("ctx", {}).items()
    assert error["loc"] == (key,)


def test_errors_of_unions_choices_and_validators() -> None:
    """bitlora.config.explain.explain: choices in quotes in `ctx["expected"]`, our own words in `ctx["error"]`;
    sweeps.spec.validate: an error for each member of a union, its name behind the key."""
    errors = _errors(either="epohc")
    assert {error["type"] for error in errors} == {"int_type", "literal_error"}
    assert all(error["loc"][0] == "either" and len(error["loc"]) == 2 for error in errors)
    literal = next(error for error in errors if error["type"] == "literal_error")
    assert re.findall("'([^']*)'", literal["ctx"]["expected"]) == ["epoch"]
    [own] = _errors(own=1)
    assert (own["type"], str(own["ctx"]["error"])) == ("value_error", "our own words")


def test_errors_of_keys() -> None:
    """sweeps.spec.validate._message: unknown, missing, and keys that are no text."""

    class Needs(BaseModel):
        name: str

    assert [(error["type"], error["loc"]) for error in _errors(unknown=1)] == [("extra_forbidden", ("unknown",))]
    with pytest.raises(ValidationError) as caught:
        Needs.model_validate({})
    assert [(error["type"], error["loc"]) for error in caught.value.errors()] == [("missing", ("name",))]
    [error] = _errors(table={1: 2})
    assert error["loc"] == ("table", 1, "[key]")
    with pytest.raises(ValidationError) as caught:
        _Config.model_validate({1: 2})
    assert {error["type"] for error in caught.value.errors()} & {"extra_forbidden", "invalid_key"}


def test_a_field_stands_for_its_own_validation() -> None:
    """sweeps.spec.parse_space._adapter: `TypeAdapter(Annotated[field.annotation, field])` validates one value of a search
    space as its axis does, constraints included."""
    field = _Config.model_fields["whole"]
    adapter: TypeAdapter[Any] = TypeAdapter(Annotated[field.annotation, field])
    assert adapter.validate_python(3, strict=True) == 3
    with pytest.raises(ValidationError) as caught:
        adapter.validate_python(0, strict=True)
    assert caught.value.errors()[0]["type"] == "greater_than_equal"
    assert _Config.model_fields["whole"].annotation is int
    assert _Config(whole=3).model_fields_set == {"whole"}


def test_yaml_as_its_author_reads_it() -> None:
    """sweeps.spec.draft: `YAML(typ="safe", pure=True)` is YAML 1.2; composed, each key knows its line, counted from 0; and
    an error says where and what."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError
    from ruamel.yaml.nodes import MappingNode, SequenceNode

    yaml = YAML(typ="safe", pure=True)
    assert yaml.load("{a: 5e-4, b: no, c: 1_000, d: 2024-01-01}") | {"d": None} == {
        "a": 5e-4,
        "b": "no",
        "c": 1000,
        "d": None,
    }
    node = yaml.compose("a: 1\nb:\n  c: [1]\n")
    assert isinstance(node, MappingNode)
    assert [key.start_mark.line for key, _ in node.value] == [0, 1]
    assert isinstance(node.value[1][1].value[0][1], SequenceNode)
    with pytest.raises(MarkedYAMLError) as caught:
        yaml.load("a: 1\nb: [1\n")
    assert caught.value.problem_mark is not None
    assert caught.value.problem


def test_yaml_keeps_the_order_that_is_written() -> None:
    """sweeps.spec.spec.dump_spec: `sort_base_mapping_type_on_output = False`; sections stand as the specs write them."""
    import io

    from ruamel.yaml import YAML

    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    text = io.StringIO()
    yaml.dump({"b": 1, "a": {"d": 1, "c": 2}}, text)
    assert text.getvalue() == "b: 1\na:\n  d: 1\n  c: 2\n"


# ---- the terminal


def test_exit_codes_of_the_command_line() -> None:
    """sweeps.cli.commands: a wrong call is exit code 2, as bad input is; `typer.Exit` hands a sweep's code on."""
    import typer
    from typer.testing import CliRunner

    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None, no_args_is_help=True)

    @app.command()
    def sweep(code: int) -> None:
        raise typer.Exit(code)

    @app.command()
    def plan() -> None: ...

    codes = [
        CliRunner().invoke(app, args).exit_code for args in (["sweep", "130"], ["sweep"], ["sweep", "x"], ["swep"])
    ]
    assert codes == [130, 2, 2, 2]


def test_rich_can_be_told_that_this_is_no_terminal() -> None:
    """sweeps.submit: TTY_COMPATIBLE=0 keeps lines plain on `ray submit`'s terminal, whatever FORCE_COLOR says."""
    from rich.console import Console

    assert Console(_environ={"FORCE_COLOR": "1"}).is_terminal
    assert not Console(_environ={"FORCE_COLOR": "1", "TTY_COMPATIBLE": "0"}).is_terminal
