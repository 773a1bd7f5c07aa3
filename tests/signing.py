"""Images with signed C2PA manifests, and the certificates for them."""

import io
from datetime import UTC, datetime, timedelta
from typing import Any

import c2pa
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

EMAIL, CLAIMS = "1.3.6.1.5.5.7.3.4", "1.3.6.1.4.1.62558.2.1"  # what a signer's certificate is meant for
MADE_BY_AI = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
MANIFEST: dict[str, Any] = {
    "title": "a picture",
    "claim_generator_info": [{"name": "A Generator", "version": "1.2"}],
    "assertions": [
        {
            "label": "c2pa.actions.v2",
            "data": {
                "actions": [
                    {
                        "action": "c2pa.created",
                        "softwareAgent": {"name": "Model X"},
                        "digitalSourceType": MADE_BY_AI,
                    }
                ]
            },
        }
    ],
}


class Authority:
    """A root certificate, and a signer whose certificate it issued."""

    def __init__(self, purpose: str = EMAIL) -> None:
        root_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
        root = _certificate("Test Root", root_key, "Test Root", root_key, None)
        leaf = _certificate("Test Signer", key, "Test Root", root_key, purpose)
        self.root = root.public_bytes(Encoding.PEM).decode()
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
        chain = leaf.public_bytes(Encoding.PEM).decode() + self.root
        self._signer = c2pa.Signer.from_info(c2pa.C2paSignerInfo(b"es256", chain.encode(), private.encode(), None))
        self._context = c2pa.Context.from_dict(
            {
                "builder": {"thumbnail": {"enabled": False}},
                "trust": {"trust_config": f"{EMAIL}\n{CLAIMS}\n"},
                "verify": {"remote_manifest_fetch": False},
            }
        )

    def sign(
        self,
        data: bytes,
        media_type: str,
        manifest: dict[str, Any] = MANIFEST,
        ingredients: tuple[bytes, ...] = (),
        remote: str | None = None,
    ) -> bytes:
        """The file with its manifest; `remote` is an address in its place, with `ingredients` of the same type."""
        out = io.BytesIO()
        with c2pa.Builder(manifest, context=self._context) as builder:
            for number, ingredient in enumerate(ingredients):
                described = {"title": f"part {number}", "relationship": "componentOf"}
                builder.add_ingredient(described, media_type, io.BytesIO(ingredient))
            if remote:
                builder.set_no_embed()
                builder.set_remote_url(remote)
            builder.sign(self._signer, media_type, io.BytesIO(data), out)
        return out.getvalue()


def _certificate(
    subject: str, key: ec.EllipticCurvePrivateKey, issuer: str, signer: ec.EllipticCurvePrivateKey, purpose: str | None
) -> x509.Certificate:
    """A root's where there is no `purpose`, and else a signer's."""
    root, today = purpose is None, datetime.now(UTC)

    def name(common: str) -> x509.Name:
        parts = ((NameOID.ORGANIZATION_NAME, "Test Organisation"), (NameOID.COMMON_NAME, common))
        return x509.Name([x509.NameAttribute(kind, value) for kind, value in parts])

    usage = {
        "digital_signature": True,
        "key_cert_sign": root,
        "crl_sign": root,
        **dict.fromkeys(("content_commitment", "key_encipherment", "data_encipherment", "key_agreement"), False),
        **dict.fromkeys(("encipher_only", "decipher_only"), False),
    }
    builder = (
        x509.CertificateBuilder()
        .subject_name(name(subject))
        .issuer_name(name(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(today - timedelta(days=1))
        .not_valid_after(today + timedelta(days=30))
        .add_extension(x509.BasicConstraints(ca=root, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(**usage), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )
    if purpose:
        builder = builder.add_extension(x509.ExtendedKeyUsage([x509.ObjectIdentifier(purpose)]), critical=False)
    return builder.sign(signer, hashes.SHA256())
