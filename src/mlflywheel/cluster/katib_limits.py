"""What Katib accepts and then does otherwise, or never ends: found out before anything is sent.

Facts of Katib 0.19.0 with its default configuration: `pkg/webhook/v1beta1/pod/utils.go` for commands,
`pkg/suggestion/v1beta1` for distributions, `pkg/controller.v1beta1/trial` for collectors.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from mlflywheel.errors import UsageError
from mlflywheel.tuning.experiment import Experiment, Parameter

# Katib replaces the commands of these collectors' containers, to redirect or to wait.
_WRAPPING_COLLECTORS = ("StdOut", "File", "TensorFlowEvent")
_SHELLS = ("sh", "bash")
# What a POSIX shell leaves as it is, unquoted.
_PLAIN_WORD = re.compile(r"[A-Za-z0-9_@%+=:,./-]*")
_ASSIGNMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=")
_PLACEHOLDER = re.compile(r"\$\{trialParameters\.([^}]+)\}")
_METADATA_ITEM = re.compile(r"\$\{trialSpec\.(Labels|Annotations)\[(.+)\]\}")

# Which distributions of a range an algorithm's service draws as they are written.
_DRAWN = {
    "random": ("uniform", "logUniform", "normal", "logNormal"),
    "tpe": ("uniform", "logUniform", "normal", "logNormal"),
    "grid": ("uniform", "logUniform"),
    "multivariate-tpe": ("uniform", "logUniform"),
    "cmaes": ("uniform",),
    "sobol": ("uniform",),
    "hyperband": ("uniform",),
    "pbt": ("uniform",),
}
# Its service (scikit-optimize) draws every double log-uniformly and every int uniformly, whatever is written.
_BAYESIAN = {"double": ("logUniform",), "int": ("uniform",)}


def check_limits(experiment: Experiment, service_account: str | None = None) -> None:
    """Refuse what would run otherwise on a cluster than it is written.

    Args:
        experiment: The search.
        service_account: Service account that trial pods are to run as.

    Raises:
        UsageError: With the field, the reason and what would do.
    """
    _check_distributions(experiment)
    _check_collector(experiment)
    _check_service_account(experiment, service_account)
    _check_command(experiment)


def _check_distributions(experiment: Experiment) -> None:
    for parameter in experiment.parameters:
        if not parameter.is_numeric:
            continue
        drawn = _distributions(experiment.algorithm, parameter)
        if parameter.distribution not in drawn:
            raise UsageError(
                f"{experiment.name}: spec.parameters {parameter.name}",
                f"distribution {parameter.distribution}, which Katib 0.19 does not draw for {experiment.algorithm}",
                f"it would be left out or drawn otherwise; {parameter.kind} with {experiment.algorithm} is drawn "
                f"{' or '.join(drawn)}",
                "write that distribution, or choose the algorithm random or tpe",
            )


def _distributions(algorithm: str, parameter: Parameter) -> tuple[str, ...]:
    if algorithm == "bayesianoptimization":
        return _BAYESIAN[parameter.kind]
    # An algorithm of one's own is its owner's affair.
    return _DRAWN.get(algorithm, _DRAWN["random"])


def _check_collector(experiment: Experiment) -> None:
    if experiment.collector.kind == "None":
        raise UsageError(
            f"{experiment.name}: spec.metricsCollectorSpec.collector.kind",
            "None",
            "without metrics no trial of Katib ever ends",
            "use StdOut, or File with a path",
        )


def _check_service_account(experiment: Experiment, service_account: str | None) -> None:
    if service_account is None:
        return
    where = f"{experiment.name}: spec.trialTemplate"
    if experiment.template.spec is None or experiment.template.container(experiment.template.spec) is None:
        raise UsageError(
            where,
            f"service account {service_account} is given, and there is no Job to write it into",
            "it is set in the template's pod",
            "name the service account in the template itself",
        )
    named = _pod(experiment.template.spec).get("serviceAccountName")
    if named not in (None, service_account):
        raise UsageError(
            where,
            f"serviceAccountName {named}, and {service_account} is given",
            "one of them can be meant",
            "leave one out",
        )


def _check_command(experiment: Experiment) -> None:
    spec = experiment.template.spec
    if spec is None or spec.get("kind") != "Job" or experiment.collector.kind not in _WRAPPING_COLLECTORS:
        return
    where = f"{experiment.name}: container {experiment.template.primary_container}"
    container = experiment.template.container(spec)
    if container is None:
        raise UsageError(
            where,
            "not in the trial's pod",
            "spec.trialTemplate.primaryContainerName names the container whose metrics count",
            "give one container that name",
        )
    command = [str(word) for word in container.get("command") or ()]
    words = [*command, *(str(word) for word in container.get("args") or ())]
    if not command:
        raise UsageError(
            where,
            "no command",
            "Katib wraps the command, and would ask the image's registry for it",
            "write the image's entry point as command",
        )
    if words[0] in _SHELLS and len(words) == 1:
        raise UsageError(where, f"command {words[0]} alone", "Katib looks at the word after it", "write sh -c SCRIPT")
    if words[0] in _SHELLS and words[1] == "-c":
        _check_script(where, words[2:])
        return
    if _ASSIGNMENT.match(words[0]):
        raise UsageError(
            where,
            f"the command begins with {words[0]}",
            "Katib runs it through a shell, which takes that for a variable",
            "begin with the program, and set variables under env",
        )
    for word in words:
        _check_word(experiment, where, word)


def _check_script(where: str, words: list[str]) -> None:
    """Check what follows `sh -c`: Katib joins it with spaces and writes a redirection behind it."""
    if len(words) != 1:
        raise UsageError(
            where,
            f"{len(words)} words after sh -c",
            "Katib joins them to one script",
            "write one script, without arguments",
        )
    last_line = words[0].rpartition("\n")[2]
    if not last_line.strip() or last_line.rstrip()[-1] in ";&|\\" or re.search(r"(^|\s)#", last_line):
        raise UsageError(
            where,
            f"the script ends in {words[0][-12:]!r}",
            "Katib writes the redirection of the output behind the last command, which would not reach it",
            "end the script with its last command (in YAML: |- instead of |)",
        )


def _check_word(experiment: Experiment, where: str, word: str) -> None:
    """Check that a word of a command reaches the program through `sh -c` without quotes."""
    rest = _PLACEHOLDER.sub("", word)
    references = _PLACEHOLDER.findall(word)
    values = [value for name in references for value in _values(experiment, name)]
    changed = next((text for text in (rest, *values) if not _PLAIN_WORD.fullmatch(text)), None)
    if changed is None and not rest and (not references or "" in values):
        changed = "an empty word"
    if changed is not None:
        raise UsageError(
            where,
            f"the word {word!r} of the command" + ("" if changed == rest else f", which may become {changed!r}"),
            "Katib joins the command with spaces and runs it through sh -c without quotes, so the program would not "
            "see that word",
            "use letters, digits and _@%+=:,./- only, and hand other values over under env",
        )


def _values(experiment: Experiment, name: str) -> Iterable[str]:
    """Return what a trial parameter can become, as far as it is not a number."""
    reference = experiment.template.parameters.get(name, "")
    item = _METADATA_ITEM.fullmatch(reference)
    if item:
        metadata = (experiment.template.spec or {}).get("metadata") or {}
        return (str((metadata.get(item[1].lower()) or {}).get(item[2], "")),)
    return next((found.values for found in experiment.parameters if found.name == reference), ())


def _pod(resource: Mapping[str, Any]) -> Mapping[str, Any]:
    return ((resource.get("spec") or {}).get("template") or {}).get("spec") or {}
