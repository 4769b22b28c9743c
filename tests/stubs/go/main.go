// Asks a server for its version, with the stubs that protoc-gen-go and protoc-gen-go-grpc make.
package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	rlmv1 "github.com/rlm-server/rlm-server/clients/go/rlm/v1"
)

func main() {
	channel, err := grpc.NewClient(os.Getenv("RLM_SERVER"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		log.Fatal(err)
	}
	defer channel.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+os.Getenv("RLM_API_KEY"))
	info, err := rlmv1.NewServerServiceClient(channel).GetServerInfo(ctx, &rlmv1.GetServerInfoRequest{})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(info.GetVersion())
}
