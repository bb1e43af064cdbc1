package claude_test

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"claude-memory-backend/internal/conversation"
)

// aimock starts a mock of the Messages API that somebody else wrote, on the loopback address, and stops it by its
// process. Our own emulator and our own reader could share a mistake; this one cannot.
func aimock(t *testing.T) string {
	t.Helper()
	root, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := os.Stat(filepath.Join(root, "go.mod")); err == nil {
			break
		}
		if root == filepath.Dir(root) {
			t.Fatal("no go.mod above the test")
		}
		root = filepath.Dir(root)
	}
	program := filepath.Join(root, ".cache", "npm", "node_modules", ".bin", "llmock")
	if _, err := os.Stat(program); err != nil {
		t.Fatal("@copilotkit/aimock is not installed; run `make setup`")
	}
	node, err := exec.LookPath("node")
	if err != nil {
		t.Fatal("node is not installed; see `make setup`")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(node, program, "-p", port, "-h", "127.0.0.1", "-f", filepath.Join("testdata", "aimock"), "--strict")
	cmd.Env = []string{"PATH=" + os.Getenv("PATH")} // nobody's keys
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = cmd.Stdout
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ready, drained := make(chan bool, 1), make(chan struct{})
	go func() {
		defer close(drained)
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			if strings.Contains(lines.Text(), "listening on") {
				ready <- true
				break
			}
		}
		_, _ = io.Copy(io.Discard, out)
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-drained
		_ = cmd.Wait()
	})
	select {
	case <-ready:
	case <-drained:
		t.Fatal("aimock ended before it listened")
	case <-time.After(30 * time.Second):
		t.Fatal("aimock does not listen")
	}
	return "http://127.0.0.1:" + port
}

func TestAgainstAimock(t *testing.T) {
	url := aimock(t)
	ask := func(t *testing.T, text string) (conversation.Answer, *heard, error) {
		d := direct(t, url, nil)
		d.RecordWaits()
		h := &heard{}
		a, err := d.Answer(context.Background(), question(text), h.sink)
		if a.Text != h.text() {
			t.Fatalf("answer %q, heard %q", a.Text, h.text())
		}
		return a, h, err
	}
	t.Run("text with usage", func(t *testing.T) {
		a, _, err := ask(t, "hello there")
		if err != nil || a.Text != "Good day, grün und 緑 and all that belongs to it." || a.StopReason != "end_turn" {
			t.Fatalf("%+v %v", a, err)
		}
		if a.Usage.InputTokens != 21 || a.Usage.OutputTokens != 9 || a.CostMicroUSD != 21*2+9*10 || a.RequestID == "" {
			t.Fatalf("%+v", a)
		}
	})
	t.Run("thinking", func(t *testing.T) {
		a, _, err := ask(t, "think first")
		want := `{"type":"thinking","thinking":"Let me see.","signature":"aimock-placeholder-signature"}`
		if err != nil || len(a.Blocks) != 2 || string(a.Blocks[0]) != want || a.Text != "Thought through." {
			t.Fatalf("%s %v", a.Blocks, err)
		}
	})
	t.Run("tool", func(t *testing.T) {
		a, _, err := ask(t, "use the tool")
		if err != nil || a.StopReason != "tool_use" || len(a.Blocks) != 1 || !strings.Contains(string(a.Blocks[0]), `"input":{"command":"view","path":"/memories"}`) {
			t.Fatalf("%s %s %v", a.Blocks, a.StopReason, err)
		}
	})
	t.Run("429 is retried twice", func(t *testing.T) {
		before := received(t, url)
		_, _, err := ask(t, "too many")
		if e := wantFault(t, err, conversation.CodeProviderLimited); e.After != time.Second || received(t, url)-before != 3 {
			t.Fatalf("%+v", e)
		}
	})
	t.Run("529", func(t *testing.T) {
		_, _, err := ask(t, "crowded")
		wantCode(t, err, conversation.CodeProviderOverloaded)
	})
	t.Run("a truncated stream is cut", func(t *testing.T) {
		a, _, err := ask(t, "break off")
		wantCode(t, err, conversation.CodeProviderCut)
		if a.Text == "" || len(a.Blocks) != 1 {
			t.Fatalf("%+v", a)
		}
	})
	t.Run("an unknown question is a failure, not an answer", func(t *testing.T) {
		if _, _, err := ask(t, "nobody wrote this down"); err == nil {
			t.Fatal("no error")
		}
	})
	t.Run("cancelled in the middle", func(t *testing.T) {
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		a, err := direct(t, url, nil).Answer(ctx, question("slowly"), func(string) { cancel() })
		if !errors.Is(err, context.Canceled) || a.Text == "" {
			t.Fatalf("%+v %v", a, err)
		}
	})
}

// received counts the requests in aimock's own journal.
func received(t *testing.T, url string) int {
	t.Helper()
	transport := &http.Transport{DisableKeepAlives: true}
	res, err := (&http.Client{Transport: transport}).Get(url + "/v1/_requests")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	raw, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Count(string(raw), `"path":"/v1/messages"`)
}
