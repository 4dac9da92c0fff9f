"""The only place that turns URIs into bytes.

Reads and writes through fsspec. What a URI may start with:

| URI                    | Where                             | Comes with                        |
| ---------------------- | --------------------------------- | --------------------------------- |
| a path, `file://`      | this machine                      |                                   |
| `http://`, `https://`  | a web server, one file at a time  | aiohttp (`fsspec[http]`)          |
| `s3://`                | Amazon S3 and what speaks like it | the extra `s3`                    |
| `minio://`             | the object store of Kubeflow      | the extra `s3`                    |
| `gs://`, `gcs://`      | Google Cloud Storage              | the extra `gcs`                   |
| `memory://`            | this process, for tests           |                                   |

Other protocols that fsspec knows are refused on purpose: a URI is data, and data does not choose what code runs.

Credentials never stand in a URI of an object store. They come from the environment, which a mounted secret fills:

- `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN`, `AWS_REGION` and the files they may point at, for
  `s3://` and `minio://` alike. Kubeflow's secret `mlpipeline-minio-artifact` holds the first two as `accesskey` and
  `secretkey`.
- `AWS_ENDPOINT_URL_S3` or `AWS_ENDPOINT_URL`: another server than Amazon's. `AWS_CA_BUNDLE`: whom to trust there.
- `MINIO_ENDPOINT`: the server behind `minio://`, as a URL or as `host:port` (then without TLS). Without it, the two
  above are asked. `s3://` never uses it.
- `MLFLYWHEEL_STORAGE_CONNECT_SECONDS`, `MLFLYWHEEL_STORAGE_READ_SECONDS` and `MLFLYWHEEL_STORAGE_ATTEMPTS`: how long a
  server may be silent, and how often it is asked (`mlflywheel.storage.patience`).
- `GOOGLE_APPLICATION_CREDENTIALS` for `gs://`.
- `HTTP_PROXY`, `HTTPS_PROXY` and `NO_PROXY` for all of them.

Nothing that is half there is handed out: a download appears when every byte of it came, and a folder is uploaded with
its `manifest.json` last, without which no model is taken up.
"""

from mlflywheel.storage.addresses import local_path, s3_endpoint, without_credentials
from mlflywheel.storage.copying import download_folder, exists, local_copy, open_binary, upload_folder

__all__ = [
    "download_folder",
    "exists",
    "local_copy",
    "local_path",
    "open_binary",
    "s3_endpoint",
    "upload_folder",
    "without_credentials",
]
