"""Turns a command line into one call of the package and an exit code: the command group, and errors."""

from __future__ import annotations

import io
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from embedcache.cli.config import CONFIG_NAME, read_config
from embedcache.errors import (
    EXIT_BUG,
    EXIT_DONE,
    EXIT_SIGINT,
    EXIT_STORAGE,
    EmbedcacheError,
    InputError,
    Interrupted,
)
from embedcache.files import storage_error
from embedcache.heap import keep_freed_memory

SECTIONS: dict[str, tuple[str, ...]] = {
    "Work": ("encode", "plan", "train", "predict", "evaluate", "submit", "export", "report"),
    "Look": ("status", "info"),
    "Care": ("verify", "repair", "gc", "diff"),
    "Machine": ("bench", "demo", "init", "doctor"),
}
"""The commands as ``embedcache --help`` groups them, in the order of a day's work."""


ALTERNATIVES = (("store", "volume"), ("steps", "epochs"), ("data", "stores"), ("data", "labels"))
"""Parameters of which a command takes only one."""


LESS_MEMORY = (
    "A volume's tile table has 40 bytes for each of its tiles, whatever is selected: a coarser --level or larger "
    "--tile make it smaller. --read-memory bounds the pixels that are kept, --batch-size what the encoder takes."
)


class Command(click.Command):
    """A command whose options accept ``-`` and ``_`` alike and may stand in ``embedcache.toml``."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        settings = {
            "token_normalize_func": _dashes,
            "help_option_names": ["-h", "--help"],
            "max_content_width": 110,
        }
        kwargs["context_settings"] = settings | (kwargs.get("context_settings") or {})
        super().__init__(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        """Announce what came from the config file, then run."""
        self._drop_alternatives(ctx)
        for parameter in self.params:
            name = parameter.name or ""
            if ctx.get_parameter_source(name) is ParameterSource.DEFAULT_MAP:
                shown = f"{self.name}.{option_name(parameter)} = {ctx.params[name]!r}"
                click.echo(f"{CONFIG_NAME}: {shown}", err=True)
        return super().invoke(ctx)

    @staticmethod
    def _drop_alternatives(ctx: click.Context) -> None:
        """The command line wins: an option given there takes its alternatives from the config file away."""
        for names in ALTERNATIVES:
            sources = {name: ctx.get_parameter_source(name) for name in names if name in ctx.params}
            if ParameterSource.COMMANDLINE in sources.values():
                for name, source in sources.items():
                    if source is ParameterSource.DEFAULT_MAP:
                        ctx.params[name] = None
                        ctx.set_parameter_source(name, ParameterSource.DEFAULT)


class Group(click.Group):
    """The command group: help in sections, options from ``embedcache.toml``."""

    command_class = Command

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Commands in the order of the sections."""
        return [name for names in SECTIONS.values() for name in names if name in self.commands]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one list per section."""
        for section, names in SECTIONS.items():
            rows = [
                (name, self.commands[name].get_short_help_str(90)) for name in names if name in self.commands
            ]
            with formatter.section(section):
                formatter.write_dl(rows)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, and let the config file's table of its name give its defaults."""
        name, command, rest = super().resolve_command(ctx, args)
        if name is not None and command is not None and name != "init":
            ctx.default_map = {name: _config_table(name, command)}
        return name, command, rest


def _dashes(text: str) -> str:
    return text.replace("_", "-")


def _config_table(name: str, command: click.Command) -> Mapping[str, Any]:
    known = {option_name(parameter): parameter for parameter in command.params if parameter.name != "as_json"}
    commands = tuple(n for names in SECTIONS.values() for n in names if n in app.commands)
    table = read_config(Path.cwd() / CONFIG_NAME, name, set(known), commands)
    return {str(known[key].name): _repeated(known[key], value) for key, value in table.items()}


def option_name(parameter: click.Parameter) -> str:
    """The name people write, with underscores: that of the longest option, or of the argument."""
    return max(parameter.opts, key=len).lstrip("-").replace("-", "_")


def _repeated(parameter: click.Parameter, value: Any) -> Any:
    """One value of an option that may be repeated stands for a list of one."""
    many = isinstance(parameter, click.Option) and parameter.multiple
    return [value] if many and not isinstance(value, list) else value


@click.group(
    cls=Group,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="First time here? `embedcache demo` shows the whole path in under three minutes.",
)
@click.version_option(version("embedcache"), prog_name="embedcache")
def app() -> None:
    """Run SAM's frozen image encoder once over a volume, keep every embedding, and train its decoder from there.

    Stage one is `encode`, stage two is `train`; `predict` and `evaluate` use what was trained.
    """


def main() -> None:
    """Entry point of the ``embedcache`` command."""
    keep_freed_memory()
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command line; turn our errors into messages and exit codes.

    Returns
    -------
    int
        The exit code.
    """
    register()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(
            stream, io.TextIOWrapper
        ):  # a terminal of ASCII shows "?" rather than ending the command
            stream.reconfigure(errors="replace")
    try:
        code = app.main(list(arguments), prog_name="embedcache", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except EmbedcacheError as error:
        _show(error)
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("Interrupted.", err=True)
        return EXIT_SIGINT
    except BrokenPipeError:
        # The reader of our output went away (as `| head` does): no fault, but Python would complain at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_DONE
    except MemoryError as error:
        _show(InputError(f"There is too little memory: {error or 'none is left'}.", hint=LESS_MEMORY))
        return InputError.exit_code
    except OSError as error:
        _show(storage_error(error, Path(error.filename or "standard output")))
        return EXIT_STORAGE
    except Exception:
        traceback.print_exc()
        click.echo("\nThis is a bug in embedcache. Please report the lines above.", err=True)
        return EXIT_BUG
    return code if isinstance(code, int) else EXIT_DONE


def _show(error: EmbedcacheError) -> None:
    word = "interrupted" if isinstance(error, Interrupted) else "error"
    click.secho(f"{word}: ", fg="red", bold=True, nl=False, err=True)
    click.echo(error.message, err=True)
    if error.hint:
        click.echo(error.hint, err=True)


def register() -> None:
    """Import the modules that hold the commands; each adds its own to ``app``."""
    from embedcache.cli import (  # noqa: F401
        bench,
        bench_read,
        bench_train,
        care,
        export,
        info,
        look,
        machine,
        stage_one,
        stage_two,
        submit,
        use,
        verify,
    )
