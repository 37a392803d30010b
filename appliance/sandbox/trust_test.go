package sandbox

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// authority makes a certificate that signs itself.
func authority(t *testing.T) []byte {
	t.Helper()
	pub, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotAfter: time.Now().Add(time.Hour), IsCA: true}
	der, err := x509.CreateCertificate(rand.Reader, c, c, pub, key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// TestTrust: the certificate stands where programs look, behind the image's.
func TestTrust(t *testing.T) {
	b := newBench(t)
	ca := authority(t)
	top := t.TempDir()
	os.Chmod(top, 0o755)
	for p, text := range map[string]string{"etc/ssl/certs/ca-certificates.crt": "# of the image\n"} {
		os.MkdirAll(filepath.Join(top, filepath.Dir(p)), 0o755)
		if err := os.WriteFile(filepath.Join(top, p), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("/nowhere", top+"/etc/ssl/cert.pem"); err != nil {
		t.Fatal(err)
	}
	img := b.image
	img.Layers = append([]string{top}, img.Layers...)
	p := policy()
	p.Filesystem.Read = []string{"/bin", "/etc/ssl"}
	out := &buffer{}
	box, err := b.l.Start(t.Context(), Spec{
		Name: "agent", Image: img, Policy: p, TrustPEM: ca, Stdout: out, Stderr: out,
		Args: []string{"env=SSL_CERT_FILE", "env=NODE_EXTRA_CA_CERTS", "read=" + trustFile, "read=/etc/ssl/certs/ca-certificates.crt", "read=/etc/passwd"},
	})
	if err != nil {
		t.Fatal(err)
	}
	box.Wait()
	want := "ok # of the image|" + strings.ReplaceAll(strings.TrimSpace(string(ca)), "\n", "|")
	got := answers(out.String())
	if got["env=SSL_CERT_FILE"] != "ok "+trustFile || got["env=NODE_EXTRA_CA_CERTS"] != "ok "+trustFile ||
		got["read="+trustFile] != want || got["read=/etc/ssl/certs/ca-certificates.crt"] != want || got["read=/etc/passwd"] != "EACCES" {
		t.Errorf("%v\nwant %s", got, want)
	}
}

// TestIdentity: the policy's user, group, capabilities and pinned programs.
func TestIdentity(t *testing.T) {
	b := newBench(t)
	raw, err := os.ReadFile(programs.probe)
	if err != nil {
		t.Fatal(err)
	}
	p := policy()
	p.Process.User, p.Process.Group = "5000", "own"
	p.Process.Capabilities = []string{"NET_BIND_SERVICE"}
	p.Process.ExecHashes = map[string]string{"/bin/probe": fmt.Sprintf("sha256:%x", sha256.Sum256(raw))}
	got, code, why := b.run(Spec{Policy: p}, "status=Uid,Gid,CapEff,CapPrm,CapBnd,CapAmb", "write=/workspace/f", "exec=/bin/probe status=CapEff", "call=mount")
	if got["status=Uid,Gid,CapEff,CapPrm,CapBnd,CapAmb"] != "ok Uid=5000,5000,5000,5000 Gid=700000,700000,700000,700000 CapPrm=0000000000000400 CapEff=0000000000000400 CapBnd=0000000000000400 CapAmb=0000000000000400" ||
		got["write=/workspace/f"] != "ok" || got["call=mount"] != "EPERM" || got["exec=/bin/probe status=CapEff"] != "ok status=CapEff: ok CapEff=0000000000000400" {
		t.Errorf("%d, %s: %v", code, why, got)
	}
}
