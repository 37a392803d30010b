package registry

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/crane"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"golang.org/x/crypto/bcrypt"

	"github.com/clawbox/clawbox/bundle/content"
)

// cheap is UserLine with the cheapest bcrypt.
func cheap(t testing.TB, name, password string) string {
	return name + ":" + string(ok(bcrypt.GenerateFromPassword([]byte(password), bcrypt.MinCost))(t)) + "\n"
}

// TestRules asks with all kinds of clients for all kinds of things.
func TestRules(t *testing.T) {
	users := filepath.Join(t.TempDir(), "users")
	must(t, os.WriteFile(users, []byte(cheap(t, "op", "op's password")+cheap(t, "dev", "dev's password")), 0o600))
	h := ok(Open(ok(content.Open(filepath.Join(t.TempDir(), "s")))(t), Options{Push: true, Users: ok(OpenUsers(users))(t), Rules: []Rule{
		LoopbackPulls,
		{Who: "user:op", Repos: "**", May: []Right{Pull, Push, Delete}},
		{Who: "user:*", Repos: "team/**", May: []Right{Pull, Push}},
		{Who: "cert:node", Repos: "**", May: []Right{Pull}},
	}}))(t)
	ask := func(who, method, path string) *httptest.ResponseRecorder {
		r := httptest.NewRequest(method, path, nil)
		switch who {
		case "loopback":
			r.RemoteAddr = "127.0.0.1:9"
		case "loopback6":
			r.RemoteAddr = "[::1]:9"
		case "node", "stranger":
			r.TLS = &tls.ConnectionState{VerifiedChains: [][]*x509.Certificate{{{Subject: pkix.Name{CommonName: who}}}}}
		case "nobody":
		case "liar":
			r.RemoteAddr = "127.0.0.1:9"
			r.SetBasicAuth("op", "guess")
		case "blank":
			r.RemoteAddr = "127.0.0.1:9"
			r.SetBasicAuth("", "")
		case "bearer":
			r.Header.Set("Authorization", "Bearer x")
		default:
			r.SetBasicAuth(who, who+"'s password")
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		return w
	}
	const up, del, get = "POST /v2/x/blobs/uploads/", "DELETE /v2/x/manifests/1", "GET /v2/x/manifests/1"
	for _, c := range []struct {
		who, what string
		status    int
	}{
		{"nobody", "GET /v2/", 401},
		{"nobody", get, 401},
		{"nobody", up, 401},
		{"nobody", "GET /v2/_catalog", 401},
		{"loopback", "GET /v2/", 401},
		{"loopback", "GET /v2/_catalog", 200},
		{"loopback", get, 404},
		{"loopback6", get, 404},
		{"loopback", up, 401},
		{"loopback", del, 401},
		{"blank", get, 404},
		{"blank", up, 401},
		{"liar", get, 401},
		{"bearer", get, 401},
		{"unknown", get, 401},
		{"op", "GET /v2/", 200},
		{"op", get, 404},
		{"op", up, 202},
		{"op", del, 404},
		{"op", "GET /v2/_catalog", 200},
		{"dev", "GET /v2/", 200},
		{"dev", get, 403},
		{"dev", up, 403},
		{"dev", del, 403},
		{"dev", "POST /v2/team/x/blobs/uploads/", 202},
		{"dev", "DELETE /v2/team/x/manifests/1", 403},
		{"dev", "POST /v2/team/blobs/uploads/", 403},
		{"dev", "POST /v2/teams/x/blobs/uploads/", 403},
		{"node", "GET /v2/", 200},
		{"node", get, 404},
		{"node", up, 403},
		{"stranger", get, 403},
		{"stranger", "GET /v2/", 401},
	} {
		method, path, _ := strings.Cut(c.what, " ")
		got := ask(c.who, method, path)
		if got.Code != c.status {
			t.Errorf("%s: %s: %d %s, want %d", c.who, c.what, got.Code, got.Body, c.status)
		}
		if c.status == 401 && !strings.HasPrefix(got.Header().Get("WWW-Authenticate"), "Basic realm=") {
			t.Errorf("%s: %s: asks for %q", c.who, c.what, got.Header().Get("WWW-Authenticate"))
		}
	}
	// The file is read again when it has changed.
	must(t, os.WriteFile(users, []byte(cheap(t, "op", "another password")), 0o600))
	if got := ask("op", "GET", "/v2/"); got.Code != 401 {
		t.Errorf("old password: %d", got.Code)
	}
	must(t, os.WriteFile(users, []byte("op:plain\n"), 0o600))
	if got := ask("op", "GET", "/v2/"); got.Code != 401 {
		t.Errorf("broken file: %d", got.Code)
	}
}

// TestMountNeedsPull: content can't be mounted out of a repository that the
// client may not read.
func TestMountNeedsPull(t *testing.T) {
	users := filepath.Join(t.TempDir(), "users")
	must(t, os.WriteFile(users, []byte(cheap(t, "dev", "dev's password")+cheap(t, "op", "op's password")), 0o600))
	s := pushRack(t, Options{Users: ok(OpenUsers(users))(t), Rules: []Rule{
		{Who: "user:dev", Repos: "team/**", May: []Right{Pull, Push}}, {Who: "user:op", Repos: "**", May: []Right{Pull, Push}},
	}})
	auth := func(who string) string {
		return "Basic " + base64.StdEncoding.EncodeToString([]byte(who+":"+who+"'s password"))
	}
	h := sumOf("sha256", []byte("secret"))
	s.send(t, "POST", "/v2/secret/blobs/uploads/?digest="+h.String(), []byte("secret"), "Authorization", auth("op")).want(t, 201, "")
	for _, from := range []string{"&from=secret", "", "&from=../x"} {
		s.send(t, "POST", "/v2/team/x/blobs/uploads/?mount="+h.String()+from, nil, "Authorization", auth("dev")).want(t, 202, "")
	}
	s.send(t, "HEAD", "/v2/team/x/blobs/"+h.String(), nil, "Authorization", auth("dev")).want(t, 404, "")
	s.send(t, "POST", "/v2/team/x/blobs/uploads/?mount="+h.String(), nil, "Authorization", auth("op")).want(t, 201, "")
}

func TestRuleCheck(t *testing.T) {
	for _, r := range []Rule{
		{},
		{"everyone", "**", []Right{Pull}},
		{"user:", "**", []Right{Pull}},
		{"user", "**", []Right{Pull}},
		{"loopback:x", "**", []Right{Pull}},
		{"anyone", "", []Right{Pull}},
		{"anyone", "a/*", []Right{Pull}},
		{"anyone", "**/x", []Right{Pull}},
		{"anyone", "Up", []Right{Pull}},
		{"anyone", "**", nil},
		{"anyone", "**", []Right{"admin"}},
	} {
		if r.Check() == nil {
			t.Errorf("%+v is taken", r)
		}
		if _, err := Open(ok(content.Open(filepath.Join(t.TempDir(), "s")))(t), Options{Rules: []Rule{r}}); err == nil {
			t.Errorf("%+v: opened", r)
		}
	}
}

func TestUsersFile(t *testing.T) {
	line := ok(UserLine("op", "long enough"))(t)
	u := ok(parseUsers([]byte("# operators\n\n" + line + "\n")))(t)
	if bcrypt.CompareHashAndPassword(u["op"], []byte("long enough")) != nil {
		t.Error("UserLine's hash doesn't fit its password")
	}
	for _, bad := range []string{"op", "op:secret", "op:{SHA}VBPuJHI7uixaa6LQGWx4s+5GKNE=", ":" + line[3:], "a b" + line[2:], line + "\n" + line, "op:$apr1$x$y", strings.Replace(line, "$10$", "$31$", 1)} {
		if _, err := parseUsers([]byte(bad)); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
	for _, bad := range [][2]string{{"", "long enough"}, {"a:b", "long enough"}, {"op", "short"}, {"op", strings.Repeat("x", 73)}} {
		if _, err := UserLine(bad[0], bad[1]); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
	if _, err := OpenUsers(filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("no file, no error")
	}
}

func TestSetUser(t *testing.T) {
	path := filepath.Join(t.TempDir(), "users")
	must(t, SetUser(path, "a", "first password"))
	must(t, os.WriteFile(path, append([]byte("# kept\n"), ok(os.ReadFile(path))(t)...), 0o600))
	must(t, SetUser(path, "b", "second password"))
	must(t, SetUser(path, "a", "third password"))
	u := ok(OpenUsers(path))(t)
	for who, err := range map[string]error{"a third password": nil, "b second password": nil, "a first password": errPassword} {
		name, password, _ := strings.Cut(who, " ")
		if got := u.Verify(t.Context(), name, password); !errors.Is(got, err) {
			t.Errorf("%s: %v", who, got)
		}
	}
	must(t, SetUser(path, "a", ""))
	if b := string(ok(os.ReadFile(path))(t)); !strings.HasPrefix(b, "# kept\nb:$2") || strings.Count(b, "\n") != 2 {
		t.Errorf("left: %s", b)
	}
	before := string(ok(os.ReadFile(path))(t))
	if SetUser(path, "a", "") == nil || SetUser(path, "b", "short") == nil || SetUser(path, "x:y", "long enough") == nil {
		t.Error("a change that is none was made")
	}
	if string(ok(os.ReadFile(path))(t)) != before {
		t.Error("a refused change has changed the file")
	}
}

func TestParseRule(t *testing.T) {
	r := ok(ParseRule(" user:*  team/** pull,push"))(t)
	if r.Who != "user:*" || r.Repos != "team/**" || len(r.May) != 2 {
		t.Errorf("%+v", r)
	}
	for _, bad := range []string{"", "user:* **", "user:* ** pull push", "user:* ** pull,,push", "x ** pull"} {
		if _, err := ParseRule(bad); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}

// TestCrowd: log-ins that come faster than they can be checked are turned
// away, and a proven password isn't checked again.
func TestCrowd(t *testing.T) {
	path := filepath.Join(t.TempDir(), "users")
	must(t, os.WriteFile(path, []byte(cheap(t, "op", "op's password")), 0o600))
	u := ok(OpenUsers(path))(t)
	must(t, u.Verify(t.Context(), "op", "op's password"))
	for range checkers {
		u.slow <- struct{}{} // all checkers are busy
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range waiters {
		wg.Go(func() { _ = u.Verify(ctx, "op", "guess") })
	}
	patiently(t, func() bool { return len(u.wait) == waiters })
	if err := u.Verify(ctx, "op", "guess"); !errors.Is(err, errCrowd) {
		t.Errorf("one too many: %v", err)
	}
	if err := u.Verify(ctx, "op", "op's password"); err != nil {
		t.Errorf("proven password: %v", err)
	}
	cancel()
	wg.Wait()
}

// issue makes a certificate and its key, signed by ca (nil: by itself).
func issue(t testing.TB, name string, ca *tls.Certificate) (cert tls.Certificate, certPEM, keyPEM []byte) {
	t.Helper()
	key := ok(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: ca == nil, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	parent, by := tmpl, any(key)
	if ca != nil {
		parent, by = ok(x509.ParseCertificate(ca.Certificate[0]))(t), ca.PrivateKey
	}
	der := ok(x509.CreateCertificate(rand.Reader, tmpl, parent, &key.PublicKey, by))(t)
	certPEM = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	keyPEM = pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: ok(x509.MarshalPKCS8PrivateKey(key))(t)})
	return ok(tls.X509KeyPair(certPEM, keyPEM))(t), certPEM, keyPEM
}

// TestTLS: an operator logs in and pushes, a node shows its certificate and
// pulls, over TLS with certificates from files.
func TestTLS(t *testing.T) {
	dir := t.TempDir()
	file := func(name string, b []byte) string {
		must(t, os.WriteFile(filepath.Join(dir, name), b, 0o600))
		return filepath.Join(dir, name)
	}
	ca, caPEM, _ := issue(t, "ca", nil)
	_, cert, key := issue(t, "registry", &ca)
	node, _, _ := issue(t, "node-1", &ca)
	stranger, _, _ := issue(t, "node-1", nil) // by itself
	conf := ok(TLS(file("cert", cert), file("key", key), file("ca", caPEM)))(t)
	users := file("users", []byte(cheap(t, "op", "op's password")))
	store := ok(content.Open(filepath.Join(dir, "store")))(t)
	h := ok(Open(store, Options{Push: true, Users: ok(OpenUsers(users))(t), Rules: []Rule{
		{Who: "user:op", Repos: "**", May: []Right{Pull, Push}}, {Who: "cert:node-1", Repos: "**", May: []Right{Pull}},
	}}))(t)
	l := ok(net.Listen("tcp", "127.0.0.1:0"))(t)
	srv := &http.Server{Handler: h, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0)}
	go srv.Serve(tls.NewListener(l, conf)) // ends by Close
	t.Cleanup(func() { srv.Close() })
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(caPEM)
	as := func(certs ...tls.Certificate) crane.Option {
		tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, Certificates: certs}}
		t.Cleanup(tr.CloseIdleConnections)
		return crane.WithTransport(tr)
	}
	op := crane.WithAuth(&authn.Basic{Username: "op", Password: "op's password"})
	img, ref := ok(random.Image(100_000, 2))(t), l.Addr().String()+"/team/app:1"
	must(t, crane.Push(img, ref, as(), op))
	drain(t, ok(crane.Pull(ref, as(), op))(t))
	drain(t, ok(crane.Pull(ref, as(node)))(t))
	for who, opts := range map[string][]crane.Option{
		"nobody": {as()}, "another CA's": {as(stranger)}, "wrong password": {as(), crane.WithAuth(&authn.Basic{Username: "op", Password: "x"})},
	} {
		if _, err := crane.Digest(ref, opts...); err == nil {
			t.Errorf("%s: pulled", who)
		}
	}
	if crane.Push(img, ref+"2", as(node)) == nil {
		t.Error("a node has pushed")
	}
	renew(t, conf, &ca, file)
}

// renew replaces the certificate's files, one after the other.
func renew(t *testing.T, conf *tls.Config, ca *tls.Certificate, file func(string, []byte) string) {
	old := ok(conf.GetCertificate(nil))(t)
	_, cert, key := issue(t, "renewed", ca)
	later := time.Now().Add(time.Hour) // another time than the first's, whatever the clock's grain
	must(t, os.Chtimes(file("cert", cert), later, later))
	if got := ok(conf.GetCertificate(nil))(t); got != old {
		t.Error("a certificate that has not got its key yet is served")
	}
	file("key", key)
	if got := ok(conf.GetCertificate(nil))(t); got == old {
		t.Error("the new certificate is not served")
	}
	for _, bad := range [][3]string{{"none", "key", ""}, {"cert", "ca", ""}, {"cert", "key", "none"}, {"cert", "key", "users"}} {
		dir := filepath.Dir(file("x", nil))
		ca := bad[2]
		if ca != "" {
			ca = filepath.Join(dir, ca)
		}
		if _, err := TLS(filepath.Join(dir, bad[0]), filepath.Join(dir, bad[1]), ca); err == nil {
			t.Errorf("%v is taken", bad)
		}
	}
}
