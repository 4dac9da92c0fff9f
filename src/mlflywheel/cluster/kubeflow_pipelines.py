"""Upload compiled pipelines to a Kubeflow Pipelines server, start runs of them, and schedule them.

Everything here can be done twice: an upload whose content is there already is that version, a schedule that is as
asked for is kept, and a run whose creation was answered by silence is looked up by the submission's number before it
is created again.
"""

import hashlib
import json
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from mlflywheel.cluster.pipeline_runs import (
    POLL_SECONDS,
    EventCallback,
    SubmittedRun,
    follow_run,
    read_pod_log,
    read_run,
)
from mlflywheel.cluster.pipelines_api import AlreadyThereError, LostAnswerError, NotFoundError, PipelinesApi
from mlflywheel.cluster.pipelines_compatibility import Loss, check_size, find_losses, read_version
from mlflywheel.cluster.pipelines_records import RunSettings, Schedule, Server, Timing, Upload
from mlflywheel.errors import RunError, UsageError
from mlflywheel.reproducibility import hash_specification
from mlflywheel.reproducibility.specification import read_specification

_SUBMISSION = "mlflywheel submission "
_SCHEDULE = "mlflywheel schedule "
_LOOKUP_SECONDS = (0.5, 2.0, 4.0)
_VERSION_DIGITS = 12
_LONGEST_NAME = 127
_PAGE = 100


@dataclass
class KubeflowPipelines:
    """A Kubeflow Pipelines server.

    Args:
        api: Its REST API.
    """

    api: PipelinesApi
    _server: Server | None = field(default=None, repr=False)

    def server(self) -> Server:
        """Ask the server what it is, once.

        Raises:
            RunError: It cannot be reached, or is something else.
            UsageError: It is installed for several users, and no namespace is known.
        """
        if self._server is None:
            try:
                found = self.api.get("healthz")
            except NotFoundError as error:
                raise RunError(
                    self.api.where, str(error), "the API v2beta1 of Kubeflow Pipelines 2 is needed", "correct --host"
                ) from None
            is_multi_user = bool(found.get("multi_user"))
            version = read_version(str(found.get("tag_name") or ""))
            self._server = Server(self.api.url, version, is_multi_user)
            if is_multi_user and not self.api.namespace:
                raise UsageError(
                    self.api.where,
                    "it is installed for several users, and no namespace is known",
                    "runs belong to a namespace",
                    "name yours with --namespace",
                )
        return self._server

    def check(self, text_yaml: str, where: str, accept_losses: bool = False) -> list[Loss]:
        """Compare a compiled pipeline with what the server understands.

        Args:
            text_yaml: The compiled YAML.
            where: What to call it in an error.
            accept_losses: Whether to go on although something is lost.

        Returns:
            What is lost; with `accept_losses` alone this can be anything.

        Raises:
            UsageError: It is too large, or something would be lost.
        """
        check_size(text_yaml, where)
        documents = read_specification(text_yaml, where)
        server = self.server()
        compiled_by = read_version(str(documents[0].get("sdkVersion") or ""))
        losses = find_losses(documents, server.version)
        if losses and not accept_losses:
            raise UsageError(
                where,
                f"Kubeflow Pipelines {server.version} does not know " + "; ".join(map(str, losses)),
                "nothing may be lost unnoticed",
                "update the server, compile without these settings, or accept it with --accept-losses",
            )
        for loss in losses:
            self.api.told(f"warning: Kubeflow Pipelines {server.version} does not know {loss}")
        if server.version is None:
            self.api.told("the server does not say its version, so it was not compared with the pipeline's")
        elif compiled_by is not None and server.version.release[:2] < compiled_by.release[:2] and not losses:
            self.api.told(
                f"Kubeflow Pipelines {server.version} is older than the kfp {compiled_by} that compiled the pipeline;"
                " nothing in it is newer than the server"
            )
        return losses

    def upload(self, text_yaml: str, where: str, version: str | None = None, accept_losses: bool = False) -> Upload:
        """Store a compiled pipeline, unless it is there.

        Args:
            text_yaml: The compiled YAML.
            where: What to call it in an error.
            version: Name of the version; the pipeline's name and the first digits of its hash if left out, so that the
                same content has the same name.
            accept_losses: Whether to go on although the server loses something.

        Raises:
            UsageError: Something would be lost, or the name belongs to other content.
            RunError: The server refused.
        """
        self.check(text_yaml, where, accept_losses)
        documents = [document for document in read_specification(text_yaml, where) if document]
        information = documents[0]["pipelineInfo"]
        name, found_hash = str(information["name"]), hash_specification(text_yaml, where)
        version_name = version or f"{name}-{found_hash.removeprefix('sha256:')[:_VERSION_DIGITS]}"
        if len(version_name) > _LONGEST_NAME:
            raise UsageError(
                "--version-name", f"{len(version_name)} characters", f"{_LONGEST_NAME} at the most", "shorten it"
            )
        pipeline_id = self._find_or_create_pipeline(name, information)
        existing = self._find_version(pipeline_id, version_name)
        is_new = existing is None
        if existing is None:
            existing = self._create_version(pipeline_id, version_name, text_yaml)
        stored = existing.get("pipeline_spec") or {}
        platform = stored.get("platform_spec")
        if stored.get("pipeline_spec", stored) != documents[0]:
            raise UsageError(
                f"version {version_name} of pipeline {name}",
                "it is there, with another content",
                "a version never changes",
                "choose another --version-name, or leave it out",
            )
        if platform != next(iter(documents[1:]), None) and not accept_losses:
            if is_new:
                self.api.delete(f"pipelines/{pipeline_id}/versions/{existing['pipeline_version_id']}")
            raise UsageError(
                where,
                "the server dropped the platform document: secrets, volumes and tolerations of every step",
                "it drops what it does not know all of, and nothing may be lost unnoticed",
                "update the server, compile without newer settings, or accept it with --accept-losses",
            )
        version_id = str(existing["pipeline_version_id"])
        link = self._link(f"pipelines/details/{pipeline_id}/version/{version_id}")
        return Upload(name, pipeline_id, version_name, version_id, found_hash, is_new, link)

    def start(self, upload: Upload, arguments: Mapping[str, Any], settings: RunSettings) -> SubmittedRun:
        """Start one run, also if the server's answer is lost.

        Args:
            upload: What to run.
            arguments: Values of parameters, as JSON values of their types.
            settings: How.

        Raises:
            RunError: The server refused; or whether the run was started cannot be found out, and the message says how
                to look.
        """
        submission = _SUBMISSION + uuid.uuid4().hex
        body = {
            "display_name": settings.name or f"{upload.pipeline} {time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime())}",
            "description": submission,
            "experiment_id": self._find_or_create_experiment(settings.experiment),
            **_describe_execution(upload, arguments, settings),
        }
        predicate = {"operation": "IS_SUBSTRING", "key": "description", "string_value": submission}

        def look_up() -> dict[str, Any] | None:
            return next(iter(self._list("runs", "runs", predicate)), None)

        return read_run(self._create("runs", body, look_up), self.api.ui, pipeline=upload.pipeline)

    def schedule(self, upload: Upload, arguments: Mapping[str, Any], settings: RunSettings, timing: Timing) -> Schedule:
        """Make runs start by themselves, unless that is so already.

        One that differs is replaced: the old one is deleted after the new one exists.

        Args:
            upload: What to run.
            arguments: Values of parameters, as JSON values of their types.
            settings: How; its name is not used.
            timing: When.

        Raises:
            UsageError: Another program made a schedule of that name.
            RunError: The server refused.
        """
        name = timing.name or upload.pipeline
        body = {
            "display_name": name,
            "experiment_id": self._find_or_create_experiment(settings.experiment),
            **_describe_execution(upload, arguments, settings),
            "trigger": timing.trigger(),
            "mode": "ENABLE",
            "max_concurrency": str(timing.max_concurrency),
            "no_catchup": timing.no_catchup,
        }
        if self.api.namespace and self.server().is_multi_user:
            body["namespace"] = self.api.namespace
        text = json.dumps(body, sort_keys=True)
        fingerprint = hashlib.sha256(text.encode()).hexdigest()
        body["description"] = _SCHEDULE + fingerprint
        there = self.schedules(name)
        foreign = [schedule for schedule in there if not schedule.fingerprint]
        if foreign:
            raise UsageError(
                f"schedule {name}",
                f"another program made {foreign[0].schedule_id}, of the same name",
                "what somebody else made is not replaced",
                "choose another --schedule-name, or delete it with mlflywheel schedules delete",
            )
        kept = next((one for one in there if one.fingerprint == fingerprint), None)
        if kept is None:

            def look_up() -> dict[str, Any] | None:
                found = self._list("recurringruns", "recurringRuns", _equals("display_name", name))
                return next((one for one in found if one.get("description") == body["description"]), None)

            kept = self._read_schedule(self._create("recurringruns", body, look_up))
            outcome = "replaced" if there else "created"
        else:
            outcome = "kept"
        for old in there:
            if old.schedule_id != kept.schedule_id:
                self.api.delete(f"recurringruns/{old.schedule_id}")
        if not kept.is_enabled:
            self.api.told(f"warning: schedule {name} is as asked for, and disabled: it starts nothing")
        return Schedule(**{**asdict(kept), "outcome": outcome})

    def follow(
        self,
        run_id: str,
        on_event: EventCallback = lambda event: None,
        timeout_seconds: float | None = None,
        poll_seconds: tuple[float, float] = POLL_SECONDS,
    ) -> SubmittedRun:
        """Watch a run until it ends; see `mlflywheel.cluster.pipeline_runs.follow_run`."""
        connection = self.api.kubernetes
        place = self.api.pods_namespace(self.server().is_multi_user)

        def read_log(run: str, task: str) -> str | None:
            return None if connection is None else read_pod_log(connection(), place, run, task)

        return follow_run(self.api, run_id, on_event, timeout_seconds, read_log, poll_seconds)

    def schedules(self, name: str | None = None) -> list[Schedule]:
        """Return the schedules of a name, or all.

        Raises:
            RunError: The server refused.
        """
        predicate = None if name is None else _equals("display_name", name)
        return [self._read_schedule(one) for one in self._list("recurringruns", "recurringRuns", predicate)]

    def delete_schedule(self, name: str) -> list[Schedule]:
        """Delete every schedule of a name; runs that it started stay.

        Returns:
            What was deleted.

        Raises:
            RunError: There is none, or the server refused.
        """
        found = self.schedules(name)
        if not found:
            raise RunError(
                f"schedule {name}", f"{self.api.where} has none", "a schedule's name is needed",
                "list them with mlflywheel schedules list",
            )  # fmt: skip
        for schedule in found:
            self.api.delete(f"recurringruns/{schedule.schedule_id}")
        return found

    def _find_or_create_pipeline(self, name: str, information: Mapping[str, Any]) -> str:
        namespace = self.api.namespace if self.server().is_multi_user else None
        body = {
            "name": name,
            "display_name": str(information.get("displayName") or name),
            "description": str(information.get("description") or ""),
            **({"namespace": namespace} if namespace else {}),
        }

        def look_up() -> dict[str, Any] | None:
            try:
                return self.api.get(f"pipelines/names/{name}", namespace=namespace)
            except NotFoundError:
                return None

        return str((look_up() or self._create("pipelines", body, look_up))["pipeline_id"])

    def _find_version(self, pipeline_id: str, name: str) -> dict[str, Any] | None:
        found = self._list(f"pipelines/{pipeline_id}/versions", "pipeline_versions", _equals("name", name))
        return found[0] if found else None

    def _create_version(self, pipeline_id: str, name: str, text_yaml: str) -> dict[str, Any]:
        def send() -> dict[str, Any]:
            return self.api.upload("pipelines/upload_version", text_yaml, name=name, pipelineid=pipeline_id)

        return _do_once(send, lambda: self._find_version(pipeline_id, name))

    def _find_or_create_experiment(self, name: str) -> str:
        namespace = self.api.namespace if self.server().is_multi_user else None

        def look_up() -> dict[str, Any] | None:
            return next(iter(self._list("experiments", "experiments", _equals("display_name", name))), None)

        found = look_up()
        if found is None:
            body = {"display_name": name, **({"namespace": namespace} if namespace else {})}
            found = self._create("experiments", body, look_up)
        if found.get("storage_state") == "ARCHIVED":
            raise UsageError(
                f"experiment {name}", "it is archived", "one that is in use is needed", "restore it, or name another"
            )
        return str(found["experiment_id"])

    def _create(
        self, path: str, body: Mapping[str, Any], look_up: Callable[[], dict[str, Any] | None]
    ) -> dict[str, Any]:
        return _do_once(lambda: self.api.post(path, body), look_up)

    def _list(self, path: str, key: str, predicate: Mapping[str, Any] | None) -> list[dict[str, Any]]:
        """Return every page of a list."""
        query: dict[str, Any] = {"page_size": _PAGE}
        if predicate is not None:
            query["filter"] = json.dumps({"predicates": [predicate]})
        if self.server().is_multi_user and not path.startswith("pipelines/"):
            query["namespace"] = self.api.namespace
        found: list[dict[str, Any]] = []
        while True:
            answer = self.api.get(path, **query)
            found.extend(answer.get(key) or [])
            if not answer.get("next_page_token"):
                return found
            query["page_token"] = answer["next_page_token"]

    def _read_schedule(self, found: Mapping[str, Any]) -> Schedule:
        trigger = found.get("trigger") or {}
        cron = (trigger.get("cron_schedule") or {}).get("cron")
        every = (trigger.get("periodic_schedule") or {}).get("interval_second")
        reference = found.get("pipeline_version_reference") or {}
        description = str(found.get("description") or "")
        schedule_id = str(found["recurring_run_id"])
        return Schedule(
            str(found.get("display_name") or ""),
            schedule_id,
            str(cron) if cron else f"every {every} s",
            str(reference.get("pipeline_id") or ""),
            str(reference.get("pipeline_version_id") or ""),
            (found.get("status") or found.get("mode")) not in ("DISABLED", "DISABLE"),
            int(found.get("max_concurrency") or 0),
            bool(found.get("no_catchup")),
            fingerprint=description.removeprefix(_SCHEDULE) if description.startswith(_SCHEDULE) else "",
            link=self._link(f"recurringrun/details/{schedule_id}"),
        )

    def _link(self, page: str) -> str | None:
        return None if self.api.ui is None else f"{self.api.ui}/#/{page}"


def _do_once(send: Callable[[], dict[str, Any]], look_up: Callable[[], dict[str, Any] | None]) -> dict[str, Any]:
    """Make something, and look whether it is there before it is made again."""
    for pause_seconds in (*_LOOKUP_SECONDS, None):
        try:
            return send()
        except AlreadyThereError as error:
            found = look_up()
            if found is None:
                raise RunError(
                    "Kubeflow Pipelines", str(error), "it was expected to be found then", "try it again"
                ) from None
            return found
        except LostAnswerError as lost:
            if pause_seconds is None:
                raise lost.error from None
            # What the server is still doing shall be seen.
            time.sleep(pause_seconds)
            found = look_up()
            if found is not None:
                return found
    raise AssertionError("the last attempt returns or raises")


def _describe_execution(upload: Upload, arguments: Mapping[str, Any], settings: RunSettings) -> dict[str, Any]:
    runtime: dict[str, Any] = {"parameters": dict(arguments)}
    if settings.pipeline_root:
        runtime["pipeline_root"] = settings.pipeline_root
    described: dict[str, Any] = {
        "pipeline_version_reference": {"pipeline_id": upload.pipeline_id, "pipeline_version_id": upload.version_id},
        "runtime_config": runtime,
    }
    if settings.service_account:
        described["service_account"] = settings.service_account
    return described


def _equals(key: str, value: str) -> dict[str, str]:
    return {"operation": "EQUALS", "key": key, "string_value": value}
