"""Signs a token with Amazon's own library, as if it were another moment."""

import datetime
import json
import sys

import botocore.auth
from aws_msk_iam_sasl_signer import MSKAuthTokenProvider
from botocore.credentials import CredentialProvider, Credentials

asked = json.loads(sys.stdin.readline())
moment = datetime.datetime.strptime(asked["date"], "%Y%m%dT%H%M%SZ")
botocore.auth.get_current_datetime = lambda remove_tzinfo=True: moment


class Given(CredentialProvider):
    METHOD = "given"

    def load(self):
        return Credentials(asked["access_key"], asked["secret_key"], asked["session"])


token, _ = MSKAuthTokenProvider.generate_auth_token_from_credentials_provider(asked["region"], Given())
print(json.dumps({"token": token}))
