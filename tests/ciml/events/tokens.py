"""Tokens of many issuers with random values, as their documents describe them."""

from __future__ import annotations

import random
import string

_ALPHABETS = {
    "w": string.ascii_letters + string.digits,
    "u": string.ascii_letters + string.digits + "-_",
    "l": string.ascii_letters,
    "x": "0123456789abcdef",
    "A": string.ascii_uppercase + string.digits,
    "d": string.digits,
}

#: Texts in which ``{w36}`` stands for 36 random letters and digits: see `_ALPHABETS`.
TOKENS = {
    "GitHub, classic": "ghp_{w36}",
    "GitHub, OAuth": "gho_{w36}",
    "GitHub, installation": "ghs_{w36}",
    "GitHub, refresh": "ghr_{w36}",
    "GitHub, fine-grained": "github_pat_{w22}_{w59}",
    "GitLab, personal": "glpat-{u20}",
    "GitLab, job": "glcbt-64_{u20}",
    "GitLab, deploy": "gldt-{u20}",
    "GitLab, runner": "glrt-{u20}",
    "GitLab, agent": "glagent-{u50}",
    "GitLab, feed": "glft-{u20}",
    "GitLab, trigger": "glptt-{x40}",
    "GitLab, mail": "glimt-{u25}",
    "GitLab, SCIM": "glsoat-{u20}",
    "npm": "npm_{w36}",
    "PyPI": "pypi-AgEIcHlwaS5vcmc{u80}",
    "Hugging Face": "hf_{l34}",
    "Google, access": "ya29.{u120}",
    "Slack, app": "xapp-1-A{A10}-{d13}-{x64}",
    "Slack, bot": "xoxb-{d12}-{d12}-{w24}",
    "Slack, user": "xoxp-{d12}-{d12}-{d12}-{x32}",
    "Slack, refresh": "xoxe-1-{w146}",
    "Slack, webhook": "https://hooks.slack.com/services/T{A8}/B{A10}/{w24}",
    "AWS, key": "AKIA{A16}",
    "AWS, session key": "ASIA{A16}",
    "Stripe, secret": "sk_live_{w99}",
    "Stripe, restricted": "rk_live_{w99}",
    "SendGrid": "SG.{w22}.{w43}",
    "OpenAI": "sk-proj-{u120}",
    "OpenAI, legacy": "sk-{w20}T3BlbkFJ{w20}",
    "Anthropic": "sk-ant-api03-{u93}AA",
    "Docker Hub": "dckr_pat_{w27}",
    "DigitalOcean": "dop_v1_{x64}",
    "DigitalOcean, OAuth": "doo_v1_{x64}",
    "Shopify": "shpat_{x32}",
    "Facebook": "EAAC{w120}",
    "Vault": "hvs.{u90}",
    "Terraform Cloud": "{w14}.atlasv1.{u64}",
    "Grafana, service account": "glsa_{w32}_{x8}",
    "Grafana Cloud": "glc_eyJ{w60}",
    "Linear": "lin_api_{w40}",
    "Notion": "ntn_{w46}",
    "Replicate": "r8_{w37}",
    "Groq": "gsk_{w52}",
    "xAI": "xai-{w80}",
    "Perplexity": "pplx-{w48}",
    "Tailscale": "tskey-auth-{w12}-{w32}",
    "Atlassian": "ATATT3x{w180}",
    "Mailgun": "key-{x32}",
    "New Relic": "NRAK-{A27}",
    "Doppler": "dp.pt.{w43}",
    "Sentry": "sntrys_eyJ{w80}",
    "PlanetScale": "pscale_tkn_{w43}",
    "Fly.io": "fm2_{w80}",
    "NVIDIA": "nvapi-{u64}",
    "JSON Web Token": "eyJ{w40}.eyJ{w80}.{w43}",
    "Cloudinary": "cloudinary://{d15}:{w27}@cloud",
    "Contentful": "CFPAT-{u43}",
    "Artifactory": "AKCp{w69}",
    "Dynatrace": "dt0c01.{A24}.{A64}",
    "age": "AGE-SECRET-KEY-1{A58}",
    "Heroku": "HRKU-{u60}",
    "1Password": "ops_eyJ{w250}",
    "Vercel": "vcp_{w56}",
    "Confluent Cloud": "cflt{w60}",
    "private key": "-----BEGIN OPENSSH PRIVATE KEY-----\n{w64}",
    "Azure Storage": "AccountKey={w86}==",
    "RubyGems": "rubygems_{x48}",
    "SonarQube": "squ_{x40}",
    "Supabase": "sbp_{x40}",
    "Pulumi": "pul-{x40}",
    "Databricks": "dapi{x32}",
    "Postman": "PMAK-{x24}-{x34}",
    "Google, refresh": "1//0{u60}",
    "Google, key": "AIza{u35}",
    "Telegram": "{d9}:AA{u33}",
    "GitLab, registration": "GR1348941{u20}",
    "Square": "sq0atp-{u22}",
    "Airtable": "pat{w14}.{x64}",
    "Mailchimp": "{x32}-us12",
    "Twilio": "SK{x32}",
    "Cloudflare": "v1.0-{x24}-{x146}",
    "Buildkite": "bkua_{x40}",
    "CircleCI": "CCIPAT_{w22}_{x40}",
    "LaunchDarkly": "sdk-{x8}-{x4}-{x4}-{x4}-{x12}",
    "Sentry, user": "sntryu_{x64}",
    "Figma": "figd_{u40}",
    "Stripe, short": "sk_live_{w24}",
}
#: The parameters that are random, as secrets that only their names give away.
NAMED = {
    "password of a form": "user=me&pass={w12}",
    "ticket of CAS": "https://h/login?ticket={w20}",
    "one-time password": "otp={d6}",
    "one-time password of a header": "X-Otp: {d6}",
    "pre-shared key": "psk={w12}",
    "SAML": "SAMLResponse={w60}",
    "SAML with a dash": "saml-response={w60}",
    "Akamai": "https://h/a?hdnts=exp=1~acl=/*~hmac={x64}",
    "option": "curl --password {w12} https://h",
    "option with quotes": 'run --api-key "{w6} {w6}" x',
    "option with one dash": "openssl -pass {w12} -in x",
    "option of a database": "mysql --db-pass {w12}",
    "variable": "DB_PASS={w12}",
    "client assertion": "client_assertion={w60}",
}


def token(template: str, random_source: random.Random) -> tuple[str, list[str]]:
    """Return a text with random values, and these values."""
    parts: list[str] = []

    def value(alphabet: str, length: str) -> str:
        parts.append("".join(random_source.choices(_ALPHABETS[alphabet], k=int(length))))
        return parts[-1]

    pieces = template.split("{")
    text = pieces[0]
    for piece in pieces[1:]:
        field, _, rest = piece.partition("}")
        text += value(field[0], field[1:]) + rest
    return text, parts
