//go:build n8n

package n8nsuite

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"claude-memory-backend/bench/lab"
	"claude-memory-backend/internal/claude/emulator"
)

const (
	backendSecret = "secret-between-backend-and-n8n"
	signingSecret = "signed-between-backend-and-n8n"
	anthropicKey  = "sk-ant-suite-key"
	relayPath     = "/webhook/claude-chat"
	streamingPath = "/webhook/claude-chat-streaming"
	laterPath     = "/webhook/claude-chat-later"
	eventsPath    = "/webhook/memory-events"
	seenPath      = "/webhook/memory-events-seen"
)

// counterpart is a running n8n with the shipped workflows, the provider behind it, and a server of ours that tells it of events.
type counterpart struct {
	base     string
	binary   string // memoryd
	provider *emulator.Server
	teller   *product
	hook     hook
}

// root is the top of the checkout, seen from this package's folder.
var root = filepath.Join("..", "..", "..")

// start brings n8n up as an operator would: credentials and workflows imported, published, the server started. The
// only change to the shipped files are the secrets and the provider's address.
func start(t *testing.T) *counterpart {
	t.Helper()
	cache, err := filepath.Abs(filepath.Join(root, ".cache", "n8n"))
	if err != nil {
		t.Fatal(err)
	}
	if dir := os.Getenv("N8N_CACHE"); dir != "" {
		cache = dir
	}
	binary := filepath.Join(cache, "app", "node_modules", ".bin", "n8n")
	if _, err := os.Stat(binary); err != nil {
		t.Fatalf("there is no n8n at %s; run scripts/n8n-setup first", binary)
	}

	c := &counterpart{provider: emulator.New(emulator.Options{Keys: map[string]string{anthropicKey: "suite"}})}
	server := httptest.NewServer(c.provider.Handler())
	t.Cleanup(server.Close)

	home := t.TempDir()
	port, broker := freePort(t), freePort(t)
	c.base = fmt.Sprintf("http://127.0.0.1:%d", port)
	if c.binary, err = lab.Build(t.Context(), t.TempDir()); err != nil {
		t.Fatal(err)
	}
	// The webhook comes first, as for an operator: its secret is shown once, and belongs into the workflow.
	c.teller = c.product(t, relayPath, "OUTBOUND_ALLOW=127.0.0.0/8")
	c.hook = c.teller.register(c.base + eventsPath)
	env := []string{
		"PATH=" + filepath.Join(cache, "node", "node_modules", ".bin") + ":" + os.Getenv("PATH"),
		"HOME=" + home, "N8N_USER_FOLDER=" + home, "DB_TYPE=sqlite", "N8N_ENCRYPTION_KEY=fixed-key-of-the-suite",
		"N8N_HOST=127.0.0.1", "N8N_LISTEN_ADDRESS=127.0.0.1", "N8N_PROTOCOL=http",
		fmt.Sprintf("N8N_PORT=%d", port), fmt.Sprintf("N8N_RUNNERS_BROKER_PORT=%d", broker),
		"N8N_DIAGNOSTICS_ENABLED=false", "N8N_VERSION_NOTIFICATIONS_ENABLED=false", "N8N_TEMPLATES_ENABLED=false",
		"N8N_PERSONALIZATION_ENABLED=false", "N8N_HIRING_BANNER_ENABLED=false", "N8N_COMMUNITY_PACKAGES_ENABLED=false",
		"N8N_LICENSE_AUTO_RENEW_ENABLED=false", "N8N_SECURE_COOKIE=false",
		"N8N_DISABLED_MODULES=mcp-registry", // it would call the vendor's API
	}

	n8n := cli{t: t, binary: binary, env: env, dir: home}
	n8n.run("import:credentials", "--input="+c.shipped(t, home, "credentials.example.json", server.URL))
	workflows := []string{"claude-chat.json", "claude-chat-streaming.json", "claude-chat-later.json", "memory-events.json"}
	// In one go: each command of n8n's takes some ten seconds.
	var all []json.RawMessage
	for _, file := range workflows {
		raw, err := os.ReadFile(c.shipped(t, home, file, server.URL))
		var list []json.RawMessage
		if err == nil {
			err = json.Unmarshal(raw, &list)
		}
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, list...)
	}
	raw, err := json.Marshal(all)
	if err == nil {
		err = os.WriteFile(filepath.Join(home, "workflows.json"), raw, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	n8n.run("import:workflow", "--input="+filepath.Join(home, "workflows.json"))
	for _, file := range workflows {
		n8n.run("publish:workflow", "--id="+workflowID(t, file))
	}
	n8n.serve()
	// Nobody who lacks the secret starts anything: the workflow's own word for that, where it checks signatures itself, is 401.
	c.await(t, "POST", relayPath, http.StatusForbidden)
	c.await(t, "POST", streamingPath, http.StatusForbidden)
	c.await(t, "POST", laterPath, http.StatusForbidden)
	c.await(t, "GET", seenPath, http.StatusForbidden)
	c.await(t, "POST", eventsPath, http.StatusUnauthorized)
	return c
}

// shipped copies a file of deploy/n8n with the suite's secrets and the emulator's address in it.
func (c *counterpart) shipped(t *testing.T, dir, name, provider string) string {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(root, "deploy", "n8n", name))
	if err != nil {
		t.Fatal(err)
	}
	text := strings.NewReplacer("REPLACE-WITH-N8N_API_KEY", backendSecret, "REPLACE-WITH-ANTHROPIC-KEY", anthropicKey,
		"REPLACE-WITH-N8N_SIGNING_SECRET", signingSecret, "REPLACE-WITH-WEBHOOK-SECRET", c.hook.Secret,
		"https://api.anthropic.com", provider).Replace(string(raw))
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func workflowID(t *testing.T, name string) string {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(root, "deploy", "n8n", name))
	if err != nil {
		t.Fatal(err)
	}
	var workflows []struct{ ID string }
	if err := json.Unmarshal(raw, &workflows); err != nil || len(workflows) != 1 {
		t.Fatalf("%s holds %d workflows: %v", name, len(workflows), err)
	}
	return workflows[0].ID
}

// cli runs n8n's commands. Their output goes to files: on a pipe that closes early they spin for ever.
type cli struct {
	t           *testing.T
	binary, dir string
	env         []string
}

func (c cli) command(ctx context.Context, log string, args ...string) *exec.Cmd {
	c.t.Helper()
	out, err := os.Create(filepath.Join(c.dir, log))
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { out.Close() })
	cmd := exec.CommandContext(ctx, c.binary, args...)
	cmd.Env, cmd.Dir, cmd.Stdout, cmd.Stderr = c.env, c.dir, out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // n8n has a child that runs tasks
	return cmd
}

func (c cli) run(args ...string) {
	c.t.Helper()
	begun := time.Now()
	ctx, cancel := context.WithTimeout(c.t.Context(), 5*time.Minute)
	defer cancel()
	if err := c.command(ctx, "command.log", args...).Run(); err != nil {
		c.t.Fatalf("n8n %s: %v\n%s", args[0], err, c.tail("command.log"))
	}
	c.t.Logf("n8n %s: %v", args[0], time.Since(begun).Round(time.Second))
}

func (c cli) serve() {
	c.t.Helper()
	cmd := c.command(context.Background(), "server.log", "start")
	if err := cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	c.t.Logf("n8n start: process %d", cmd.Process.Pid)
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	c.t.Cleanup(func() {
		if c.t.Failed() {
			c.t.Logf("the end of n8n's log:\n%s", c.tail("server.log"))
		}
		cmd.Process.Signal(syscall.SIGTERM)
		select {
		case err := <-ended:
			c.t.Logf("n8n ended: %v", err)
		case <-time.After(40 * time.Second):
			c.t.Log("n8n did not end by itself")
		}
		// What is left of the process group that this suite started goes with it.
		syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	})
}

func (c cli) tail(log string) string {
	raw, err := os.ReadFile(filepath.Join(c.dir, log))
	if err != nil {
		return err.Error()
	}
	return string(raw[max(0, len(raw)-4000):])
}

// await polls a webhook until it is registered: n8n calls itself ready before that. What is asked for has no secret and no
// signature, and is refused with the status.
func (c *counterpart) await(t *testing.T, method, path string, refused int) {
	t.Helper()
	begun := time.Now()
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	last := "no answer"
	for time.Since(begun) < 5*time.Minute {
		req, err := http.NewRequestWithContext(t.Context(), method, c.base+path, strings.NewReader("{}"))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/json")
		resp, err := http.DefaultClient.Do(req)
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode == refused {
				t.Logf("%s served after %v", path, time.Since(begun).Round(time.Second))
				return
			}
			last = resp.Status
		}
		<-tick.C
	}
	t.Fatalf("%s is not served: %s", path, last)
}

func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}
