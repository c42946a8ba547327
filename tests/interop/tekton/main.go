// Sends the CloudEvents of Tekton's own controller: each line of the standard input is a TaskRun or a PipelineRun.
//
// Event, type, data and HTTP client are Tekton's; the reconciler, which needs Kubernetes, is not run.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"

	cloudevents "github.com/cloudevents/sdk-go/v2"
	v1 "github.com/tektoncd/pipeline/pkg/apis/pipeline/v1"
	"github.com/tektoncd/pipeline/pkg/reconciler/events/cloudevent"
	"k8s.io/client-go/rest"
	"knative.dev/pkg/injection"
)

func main() {
	if len(os.Args) != 2 {
		fail("usage: tekton-events URL")
	}
	ctx := context.Background()
	for _, client := range injection.Default.GetClients() {
		ctx = client(ctx, &rest.Config{Host: "http://127.0.0.1:1"})
	}
	ctx = cloudevents.ContextWithTarget(ctx, os.Args[1])
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 1<<24)
	for lines.Scan() {
		event, err := read(ctx, lines.Bytes())
		if err != nil {
			fail(err.Error())
		}
		if result := cloudevent.Get(ctx).Send(ctx, *event); !cloudevents.IsACK(result) {
			fail(result.Error())
		}
		fmt.Println(event.Type())
	}
}

func read(ctx context.Context, line []byte) (*cloudevents.Event, error) {
	var kind struct{ Kind string }
	if err := json.Unmarshal(line, &kind); err != nil {
		return nil, err
	}
	if kind.Kind == "PipelineRun" {
		run := &v1.PipelineRun{}
		if err := json.Unmarshal(line, run); err != nil {
			return nil, err
		}
		return cloudevent.EventForObjectWithCondition(ctx, run)
	}
	run := &v1.TaskRun{}
	if err := json.Unmarshal(line, run); err != nil {
		return nil, err
	}
	return cloudevent.EventForObjectWithCondition(ctx, run)
}

func fail(why string) {
	fmt.Fprintln(os.Stderr, why)
	os.Exit(1)
}
