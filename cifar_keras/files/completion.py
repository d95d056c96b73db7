"""Shell scripts that complete the commands, their flags, and the values of the flags."""

from collections.abc import Mapping

SHELLS = ("bash", "zsh", "fish")

# The flags of a command, each with the values to offer for it. An empty list offers none.
Choices = Mapping[str, list[str]]


def completion(shell: str, program: str, commands: Mapping[str, Choices]) -> str:
    """Return the completion script for a shell. The shell has to read it when it starts.

    Args:
        shell: one of `SHELLS`.
        program: name of the program.
        commands: the flags of each command.

    Examples:
        >>> commands = {"train": {"help": [], "dataset": ["cifar10", "synthetic"]}}
        >>> print(completion("fish", "cifar-keras", commands), end="")
        complete -c cifar-keras -f -n '__fish_use_subcommand' -a 'train'
        complete -c cifar-keras -n '__fish_seen_subcommand_from train' -l help
        complete -c cifar-keras -n '__fish_seen_subcommand_from train' -l dataset -x -a 'cifar10 synthetic'
    """
    if shell == "fish":
        return _fish(program, commands)
    script = _bash(program, commands)
    return script if shell == "bash" else f"autoload -U +X bashcompinit && bashcompinit\n{script}"


def _bash(program: str, commands: Mapping[str, Choices]) -> str:
    flags = [f'    {name}) words="{_words(choices)}" ;;' for name, choices in commands.items()]
    values = {flag: listed for choices in commands.values() for flag, listed in choices.items() if listed}
    of_flags = [f'    --{flag}) words="{" ".join(listed)}" ;;' for flag, listed in sorted(values.items())]
    function = f"_{program.replace('-', '_')}"
    return "\n".join(
        [
            f"{function}() {{",
            # The shell treats the equals sign as a word of its own.
            '  local current="${COMP_WORDS[COMP_CWORD]}" before="${COMP_WORDS[COMP_CWORD-1]}" words=""',
            '  if [ "$current" = "=" ]; then current=""; before="="; COMP_CWORD=$((COMP_CWORD+1)); fi',
            '  if [ "$COMP_CWORD" -eq 1 ]; then',
            f'    words="{" ".join(commands)}"',
            '  elif [ "$before" = "=" ]; then',
            '    case "${COMP_WORDS[COMP_CWORD-2]}" in',
            *of_flags,
            "    esac",
            "  else",
            '    case "${COMP_WORDS[1]}" in',
            *flags,
            "    esac",
            "  fi",
            '  COMPREPLY=($(compgen -W "$words" -- "$current"))',
            '  case "${COMPREPLY[0]}" in *=) compopt -o nospace 2>/dev/null ;; esac',
            "}",
            f"complete -o default -F {function} {program}",
            "",
        ]
    )


def _words(choices: Choices) -> str:
    return " ".join("--help" if flag == "help" else f"--{flag}=" for flag in choices)


def _fish(program: str, commands: Mapping[str, Choices]) -> str:
    lines = [f"complete -c {program} -f -n '__fish_use_subcommand' -a '{' '.join(commands)}'"]
    for name, choices in commands.items():
        for flag, listed in choices.items():
            wants = "" if flag == "help" else f" -x -a '{' '.join(listed)}'" if listed else " -r"
            lines.append(f"complete -c {program} -n '__fish_seen_subcommand_from {name}' -l {flag}{wants}")
    return "\n".join([*lines, ""])
